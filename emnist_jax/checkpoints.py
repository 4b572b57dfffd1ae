"""Checkpoints with orbax: saved every epoch, resumed by the same command, and carried over to another run."""

import json
import logging
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from emnist_jax.errors import UserError

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: the last two, and the best by validation top-1.

    Each holds the train state and `progress`, the JSON record of the epochs so far (see `loop`).
    """

    def __init__(self, workdir: Path):
        policy = AnyPreservationPolicy(
            [
                LatestN(2),
                BestN(get_metric_fn=lambda m: m["top1"], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
        )

    def save(self, state, progress: dict) -> None:
        """Saves in the background; `progress` of an epoch with validation makes it a candidate for the best."""
        validation = progress["epochs"][-1].get("validation") if progress["epochs"] else None
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)),
            metrics=validation,
        )

    def restore(self, abstract_state, step: int | None = None) -> tuple[Any, dict] | None:
        """Restores a checkpoint, or the newest one that is intact.

        Args:
          abstract_state: The state's shapes, dtypes and shardings.
          step: Which one; None: the newest.

        Returns:
          State and progress, or None where there is no checkpoint yet.

        Raises:
          UserError: There are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        for candidate in steps:
            try:
                restored = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore()
                    ),
                )
                return restored.state, restored.progress
            # Damage shows as many kinds of exception, from tensorstore's to json's.
            except Exception as error:
                reason = str(error).strip().splitlines()[0]
                log.warning("checkpoint %d in %s is damaged: %s", candidate, self._manager.directory, reason)
        if steps:
            raise UserError(f"no checkpoint in {self._manager.directory} can be read; delete the workdir to start over")
        return None

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.close()


def transfer(workdir: Path, params, batch_stats) -> tuple[Any, Any]:
    """Loads another run's tested parameters and batch_stats; keeps our head where the classes differ.

    Args:
      workdir: Of the other run.
      params: Ours, freshly initialised.
      batch_stats: Ours.

    Returns:
      Parameters and batch_stats, numpy arrays where they were loaded.

    Raises:
      UserError: No such run, or its network differs from ours in more than the classes.
    """
    result_path = workdir / "result.json"
    if not result_path.is_file():
        raise UserError(f"config.init_from={workdir} holds no finished run (no {result_path.name})")
    step = json.loads(result_path.read_text())["step"]
    manager = ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(), item_handlers={"state": ocp.PyTreeCheckpointHandler()}
    )
    with manager:
        saved = manager.item_metadata(step)["state"].tree
        # The averaged parameters are the ones that were tested.
        params_name = "params" if saved["ema_params"] is None else "ema_params"
        saved = {name: saved[name] for name in (params_name, "batch_stats")}
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    jax.tree.map(lambda leaf: 0, saved),
                    restore_args=jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), saved),
                    partial_restore=True,
                )
            ),
        ).state
    return (
        _merge(workdir, restored[params_name], params),
        _merge(workdir, restored["batch_stats"], batch_stats),
    )


def _merge(workdir: Path, theirs, ours):
    """Returns their leaves in our structure, but our head where its shapes differ."""
    theirs = flax.traverse_util.flatten_dict(theirs)
    merged = flax.traverse_util.flatten_dict(ours)
    shapes = {path: leaf.shape for path, leaf in merged.items()}
    differing = {
        "/".join(path)
        for path in theirs.keys() | shapes.keys()
        if path not in theirs or path not in shapes or theirs[path].shape != shapes[path]
    }
    head = {path for path in shapes if path[0] == "head"}
    if unexpected := sorted(differing - {"/".join(path) for path in head}):
        raise UserError(
            f"config.init_from={workdir} holds another network: {len(unexpected)} parameters differ, "
            f"first {unexpected[0]}"
        )
    if differing:
        log.info("init_from: the head has other classes and keeps its initial weights")
    merged |= {path: leaf for path, leaf in theirs.items() if not (differing and path in head)}
    return flax.traverse_util.unflatten_dict(merged)
