"""Checkpoints with orbax: saved every epoch, resumed by the same command, and carried over to another run."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import from_state_dict, to_state_dict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from emnist_jax.errors import UserError
from emnist_jax.training import hosts, weights

log = logging.getLogger(__name__)


def by_preference(epochs: list[dict]) -> list[dict]:
    """Returns the records of epochs, best validation top-1 first; of equal ones, the later first."""
    return sorted(epochs, key=lambda epoch: (epoch["validation"]["top1"], epoch["step"]), reverse=True)


class _Kept(PreservationPolicy):
    """Keeps some steps. orbax' own BestN forgets the metrics of what an earlier process saved."""

    steps: frozenset[int] = frozenset()

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run: the last two, the last epoch's end, and the best epoch by validation top-1.

    Each holds the train state and `progress`, the JSON record of the epochs so far (see `loop`). The first process
    alone reads and writes them, and tells the others what it has read.
    """

    def __init__(self, workdir: Path):
        self._manager = None
        if hosts.is_first():
            self._kept = _Kept()
            folder = workdir / "checkpoints"
            try:
                folder.mkdir(exist_ok=True)
                self._manager = _manager(folder, preservation_policy=AnyPreservationPolicy([LatestN(2), self._kept]))
            except OSError as error:
                raise UserError(f"cannot use {folder}: {error}") from error

    def save(self, state, progress: dict) -> None:
        """Saves in the background, unless there is a checkpoint of that step.

        Raises:
          UserError: The disk is full, or the save before this one failed.
        """
        if not self._manager:
            return
        needed_bytes = 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + 2**20
        free_bytes = shutil.disk_usage(self._manager.directory).free
        if free_bytes < needed_bytes:
            raise UserError(
                f"{self._manager.directory} has {free_bytes / 2**20:.1f} MiB left, and a checkpoint takes up to "
                f"{needed_bytes / 2**20:.1f}: free some. The checkpoints before it are intact; the same command resumes"
            )
        # A copy: orbax writes it later, when the loop has gone on.
        progress = json.loads(json.dumps(progress))
        if epochs := progress["epochs"]:
            best = [by_preference(epochs)[0]["step"]] if epochs[-1].get("validation") else []
            self._kept.steps = frozenset([epochs[-1]["step"], *best])
        state = jax.device_get(state)
        with self._reporting():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # tensorstore notices a changed byte by itself.
                    progress=ocp.args.JsonSave({"progress": progress, "sha256": _sha256(progress)}),
                ),
            )

    @contextlib.contextmanager
    def _reporting(self):
        try:
            yield
        # A full disk shows as many kinds of exception, from OSError to tensorstore's ValueError.
        except Exception as error:
            raise UserError(
                f"cannot save in {self._manager.directory}: {_first_line(error)}. The checkpoints before it are "
                "intact; the same command resumes"
            ) from error

    def wait(self) -> None:
        """Waits for the saves under way.

        Raises:
          UserError: They failed.
        """
        if self._manager:
            with self._reporting():
                self._manager.wait_until_finished()

    def restore(self, target, steps: list[int]) -> tuple[Any, dict] | None:
        """Restores the first intact checkpoint of some steps, and says in the log why not those before it.

        Args:
          target: A state of the same structure, shapes and dtypes.
          steps: Of which there may be checkpoints, in order of preference.

        Returns:
          The state, of numpy arrays, and the progress; None where there is no such checkpoint.
        """
        restored = None
        with hosts.together("restored"):
            self.wait()
            if self._manager:
                there = set(self._manager.all_steps())
                attempts = (self._read(step, target) for step in steps if step in there)
                restored = next(filter(None, attempts), None)
        return _told(restored, target)

    def restore_latest(self, target) -> tuple[Any, dict] | None:
        """Restores the newest intact checkpoint, or returns None where there is none yet; `target` as in `restore`.

        Raises:
          UserError: There are checkpoints, but none can be read.
        """
        restored = None
        with hosts.together("restored"):
            steps = sorted(self._manager.all_steps(), reverse=True) if self._manager else []
            restored = next(filter(None, (self._read(step, target) for step in steps)), None)
            if restored:
                self.set_aside_after(int(restored[0].step))
            elif steps:
                raise UserError(
                    f"no checkpoint in {self._manager.directory} can be read; delete the workdir to start over"
                )
        return _told(restored, target)

    def _read(self, step: int, target) -> tuple[Any, dict] | None:
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
            if jax.tree.map(jnp.shape, restored.state) != jax.tree.map(jnp.shape, target):
                raise ValueError("its arrays have other shapes")
            progress = restored.progress["progress"]
            if restored.progress["sha256"] != _sha256(progress):
                raise ValueError("its progress has changed")
        # Damage shows as many kinds of exception, from tensorstore's to json's.
        except Exception as error:
            log.warning("checkpoint %d in %s cannot be read: %s", step, self._manager.directory, _first_line(error))
            return None
        return restored.state, progress

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after a step to `set_aside/`, for orbax saves none before its newest."""
        self.wait()
        for newer in self._manager.all_steps() if self._manager else []:
            if newer > step:
                aside = self._manager.directory.parent / "set_aside" / f"{newer}_{time.time():.0f}"
                aside.parent.mkdir(exist_ok=True)
                (self._manager.directory / str(newer)).rename(aside)
                log.warning("moved checkpoint %d to %s", newer, aside)
                self._manager.reload()

    def close(self) -> None:
        """Waits for the saves under way, and ends orbax' threads."""
        if self._manager:
            with self._reporting():
                self._manager.close()


def _manager(folder: Path, item_handlers=None, **options) -> ocp.CheckpointManager:
    """Returns orbax' manager of a run's checkpoints, for the first process alone."""
    alone = ocp.options.MultiprocessingOptions(active_processes={0})
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone, **options)
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=item_handlers)


def _told(restored: tuple[Any, dict] | None, target) -> tuple[Any, dict] | None:
    """Returns what the first process has restored."""
    told = hosts.from_first(restored and {"state": to_state_dict(restored[0]), "progress": restored[1]})
    return told and (from_state_dict(target, told["state"]), told["progress"])


def _sha256(progress: dict) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


def transfer(source: str, params, batch_stats) -> tuple[Any, Any]:
    """Loads tested parameters and batch_stats; keeps our head where theirs is missing or has other classes.

    Args:
      source: Another run's workdir, or weights of a reference implementation as `weights.load` reads them.
      params: Ours, freshly initialised.
      batch_stats: Ours.

    Returns:
      Parameters and batch_stats, of numpy arrays.

    Raises:
      UserError: They cannot be read, or their network differs from ours in more than the classes.
    """
    merged = None
    with hosts.together("transferred"):
        if hosts.is_first():
            loaded = weights.load(source) if source.startswith(("keras:", "pytorch:")) else _load_run(Path(source))
            merged = [_merge(source, *pair) for pair in zip(loaded, jax.device_get((params, batch_stats)), strict=True)]
    params, batch_stats = hosts.from_first(merged)
    return params, batch_stats


def _load_run(workdir: Path) -> tuple[Any, Any]:
    """Returns the parameters and batch_stats that a finished run tested."""
    result_path = workdir / "result.json"
    if not os.path.isfile(result_path):  # unlike Path.is_file, also for a name that is too long
        raise UserError(f"config.init_from={workdir} holds no finished run (no {result_path.name})")
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    try:
        step = json.loads(result_path.read_text())["step"]
        with _manager(workdir / "checkpoints", handlers, read_only=True) as manager:
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
    except Exception as error:  # as in `_read`
        raise UserError(f"config.init_from={workdir} cannot be read: {_first_line(error)}") from error
    return restored[params_name], restored["batch_stats"]


def _merge(source: str, theirs, ours):
    """Returns their leaves in our structure, but our head where its shapes differ."""
    theirs = flax.traverse_util.flatten_dict(theirs)
    merged = flax.traverse_util.flatten_dict(ours)
    shapes = {path: leaf.shape for path, leaf in merged.items()}
    differing = {
        "/".join(path)
        for path in theirs.keys() | shapes.keys()
        if path not in theirs or path not in shapes or theirs[path].shape != shapes[path]
    }
    head = {path for path in shapes.keys() | theirs.keys() if path[0] == "head"}
    if unexpected := sorted(differing - {"/".join(path) for path in head}):
        raise UserError(
            f"config.init_from={source} holds another network: {len(unexpected)} parameters differ, "
            f"first {unexpected[0]}"
        )
    if differing:
        log.info("init_from: the head has no match there and keeps its initial weights")
    merged |= {
        path: np.asarray(leaf, merged[path].dtype) for path, leaf in theirs.items() if not (differing and path in head)
    }
    return flax.traverse_util.unflatten_dict(merged)
