"""Checkpoints with orbax: saved at every epoch's end, and restored when the same command is run again."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import from_state_dict, to_state_dict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from emnist_jax.errors import UserError, first_line
from emnist_jax.training import hosts
from emnist_jax.training.record import Record

log = logging.getLogger(__name__)


class _Keep(PreservationPolicy):
    """Keeps some steps. orbax' own BestN forgets the metrics of what an earlier process saved."""

    steps: frozenset[int] = frozenset()

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run: the last two, the last epoch's end, and the best epoch by validation top-1.

    Each holds the train state and the record. The first process alone reads and writes them, and tells the others
    what it has read; all processes call each method.
    """

    def __init__(self, workdir: Path):
        self._manager = None
        if hosts.is_first():
            self._keep = _Keep()
            folder = workdir / "checkpoints"
            try:
                folder.mkdir(exist_ok=True)
                self._manager = _manager(folder, preservation_policy=AnyPreservationPolicy([LatestN(2), self._keep]))
            except OSError as error:
                raise UserError(f"cannot use {folder}: {error}") from error

    @hosts.all_or_none("saved")
    def save(self, state, record: Record) -> None:
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
        self._keep.steps = frozenset(epoch["step"] for epoch in (*record.epochs[-1:], *record.best_first[:1]))
        # Copies: orbax writes them later, when training has gone on.
        state, record = jax.device_get(state), dataclasses.asdict(record)
        with self._reporting():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # tensorstore notices a changed byte by itself, JSON does not.
                    record=ocp.args.JsonSave({"record": record, "sha256": _sha256(record)}),
                ),
            )

    @contextlib.contextmanager
    def _reporting(self):
        try:
            yield
        # A full disk shows as many kinds of exception, from OSError to tensorstore's ValueError.
        except Exception as error:
            raise UserError(
                f"cannot save in {self._manager.directory}: {first_line(error)}. The checkpoints before it are "
                "intact; the same command resumes"
            ) from error

    @hosts.all_or_none("waited")
    def wait(self) -> None:
        """Waits for the saves under way.

        Raises:
          UserError: They failed.
        """
        self._wait()

    def _wait(self) -> None:
        if self._manager:
            with self._reporting():
                self._manager.wait_until_finished()

    def restore(self, target, steps: list[int]) -> tuple[Any, Record] | None:
        """Restores the first intact checkpoint of some steps, and logs why not those before it.

        Args:
          target: A state of the same structure, shapes and dtypes.
          steps: Of which there may be checkpoints, in order of preference.

        Returns:
          The state, of numpy arrays, and the record; None if there is no such checkpoint.
        """
        restored = None
        with hosts.all_or_none("restored"):
            self._wait()
            if self._manager:
                there = set(self._manager.all_steps())
                attempts = (self._read(step, target) for step in steps if step in there)
                restored = next(filter(None, attempts), None)
        return _broadcast(restored, target)

    def restore_latest(self, target) -> tuple[Any, Record] | None:
        """Restores the newest intact checkpoint, or returns None if there is none yet; `target` as in `restore`.

        Raises:
          UserError: There are checkpoints, but none can be read.
        """
        restored = None
        with hosts.all_or_none("restored"):
            steps = sorted(self._manager.all_steps(), reverse=True) if self._manager else []
            restored = next(filter(None, (self._read(step, target) for step in steps)), None)
            if restored:
                self._set_aside_after(int(restored[0].step))
            elif steps:
                raise UserError(
                    f"no checkpoint in {self._manager.directory} can be read; delete the workdir to start over"
                )
        return _broadcast(restored, target)

    def _read(self, step: int, target) -> tuple[Any, Record] | None:
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)),
                    record=ocp.args.JsonRestore(),
                ),
            )
            if jax.tree.map(jnp.shape, restored.state) != jax.tree.map(jnp.shape, target):
                raise ValueError("its arrays have other shapes")
            if restored.record["sha256"] != _sha256(restored.record["record"]):
                raise ValueError("its record has changed")
            return restored.state, Record(**restored.record["record"])
        # Damage shows as many kinds of exception, from tensorstore's to json's.
        except Exception as error:
            log.warning("checkpoint %d in %s cannot be read: %s", step, self._manager.directory, first_line(error))
            return None

    @hosts.all_or_none("set aside")
    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after a step to `set_aside/`: orbax saves none before its newest."""
        self._set_aside_after(step)

    def _set_aside_after(self, step: int) -> None:
        self._wait()
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


def _broadcast(restored: tuple[Any, Record] | None, target) -> tuple[Any, Record] | None:
    """Returns in all processes what the first one has restored."""
    content = hosts.broadcast(
        restored and {"state": to_state_dict(restored[0]), "record": dataclasses.asdict(restored[1])}
    )
    return content and (from_state_dict(target, content["state"]), Record(**content["record"]))


def _sha256(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_variables(workdir: Path, step: int) -> dict:
    """Reads what a run's network is evaluated with from its checkpoint of a step.

    Returns:
      "params" and "batch_stats", trees of numpy arrays: the moving averages, if the run has them.

    Raises:
      Exception: There is no such checkpoint, or it is damaged; of many kinds.
    """
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    with _manager(workdir / "checkpoints", handlers, read_only=True) as manager:
        saved = manager.item_metadata(step)["state"].tree
        if "ema" not in saved:
            raise ValueError("its checkpoints were made by an earlier version of this program")
        names = ("params", "batch_stats") if saved["ema"] is None else ("ema",)
        saved = {name: saved[name] for name in names}
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
    return restored.get("ema", restored)
