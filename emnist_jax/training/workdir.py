"""The folder of a run: whose it is, and what it holds already."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from emnist_jax.config import base, flatten
from emnist_jax.errors import UserError
from emnist_jax.reporting import terminal

log = logging.getLogger(__name__)

# NFS keeps a lost node's lock for 90 seconds.
LOCK_PATIENCE_SECONDS = 120
# Keys that may change when a run resumes.
FREE_KEYS = {"dataset.data_dir", "on_nan", "training.steps_per_call"}


@contextlib.contextmanager
def open_workdir(workdir: Path, config) -> Iterator[None]:
    """Makes the workdir, or checks that it is this config's; locks it, and logs to it.

    Raises:
      UserError: It cannot be written, holds something else than a run of this config, or another process trains in it.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(terminal.stop_log)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # Every run begins with the lock.
            others = sorted(path.name for path in workdir.iterdir())
            if others and "lock" not in others:
                raise UserError(f"{workdir} is not empty and holds no run (but {others[0]}); pass another --workdir")
            for name in ("lock", "log.txt"):
                if (workdir / name).is_fifo():
                    raise OSError(errno.ESPIPE, f"{name} is a pipe")
            locked = stack.enter_context(lock(workdir / "lock"))
            terminal.start_log(workdir / "log.txt")
        except OSError as error:
            raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error
        if not locked:
            log.warning("%s is on a file system without locks: nothing keeps a second process from it", workdir)
        path, found = workdir / "config.json", {}
        if path.exists():
            with _reading(path):
                # A key that is newer than the run had its default.
                found = flatten(base().to_dict()) | flatten(json.loads(path.read_text()))
                check_same(workdir, found, flatten(as_json(config)))
        yield found


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Locks a file of a workdir; yields False if the file system has no locks, as some network ones.

    Raises:
      UserError: Another process has locked it.
    """
    with open(path, "w") as file:
        try:
            locked = _lock(file)
        except BlockingIOError as error:
            message = f"another process trains in {path.parent}; wait for it, or pass another --workdir"
            raise UserError(message) from error
        yield locked  # the system releases it when the process ends, however it ends


def _lock(file) -> bool:
    # If there are several processes, those of an earlier start may still hold it. A single one has a user who can wait.
    deadline = time.monotonic() + (LOCK_PATIENCE_SECONDS if jax.distributed.is_initialized() else 0)
    waiting = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            if not waiting:
                print(f"waiting for the lock of another process: {file.name}", file=sys.stderr)
            waiting = True
            time.sleep(1)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            return False


def check_same(workdir: Path, found: dict, wanted: dict) -> None:
    """Raises UserError if the dotted keys of a workdir's config and those that are wanted differ."""
    if differing := differences(found, wanted):
        raise UserError(f"{workdir} belongs to another config ({differing}); pass another --workdir")


def differences(found: dict, wanted: dict) -> str:
    """Says which dotted keys of two configs differ so that their results would; "" if none does."""

    def value(key: str, config: dict):
        # A run, and beside it the one that it starts from, may have been moved.
        return Path(config[key]).parts[-2:] if key == "init_from" and config.get(key) else config.get(key)

    differing = {key for key in found.keys() | wanted.keys() if value(key, found) != value(key, wanted)} - FREE_KEYS
    return ", ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in sorted(differing))


def read_result(workdir: Path) -> dict | None:
    """Returns what result.json holds, or None if the run has not finished.

    Raises:
      UserError: It is damaged.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    with _reading(path):
        result = json.loads(path.read_text())
        terminal.result_table(result)  # raises if a key is missing
        return result


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns any error from reading and using a damaged JSON file into a UserError."""
    try:
        if not path.is_file():
            raise OSError("it is no file")
        yield
    except (ArithmeticError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error!r}; delete it, or pass another --workdir") from error


def as_json(config) -> dict:
    """Returns a config as config.json holds it."""
    return json.loads(json.dumps(config.to_dict()))


def write_json(path: Path, content: dict) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
