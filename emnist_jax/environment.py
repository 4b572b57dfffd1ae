"""What a figure was measured with."""

import functools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from emnist_jax.errors import UserError


def environment() -> dict:
    """Returns the device, the versions and the commit that a result was made with."""
    import jax  # late: `cores` is for processes that do without

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy")
    device = jax.devices()[0]
    kind = f"CPU of {cores()} core{'s' * (cores() > 1)}" if device.platform == "cpu" else device.device_kind
    # `launch/all_results.sh` sets it for processes that share a GPU.
    if device.platform == "gpu" and (share := os.environ.get("XLA_CLIENT_MEM_FRACTION")):
        kind += f" with {share} of its memory"
    return {
        "device": f"{jax.device_count()} x {kind}",
        "versions": {package: version(package) for package in packages} | {"python": sys.version.split()[0]},
        "commit": commit(),
    }


def cores() -> int:
    """Returns how many cores this process may use, if the system tells, and else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache  # a sweep goes on with the code that it has imported, whatever is committed meanwhile
def commit() -> str:
    """Returns the commit, with "-dirty" if code, configs or launch/ are not as in it, or "unknown".

    The tables and files of results do not count: each finished run changes them.
    """
    try:
        if not _git("ls-files", Path(__file__).name):
            return "unknown"  # installed, perhaps in a folder within another repository
        name = _git("describe", "--always", "--abbrev=12")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/emnist_jax", ":/configs", ":/launch")
    except OSError:  # no git
        return "unknown"
    return f"{name}-dirty" if changed else name


def check_commit(what: str, commit: str) -> None:
    """Raises UserError if no commit holds the code that `what` is made with."""
    if "-dirty" in commit or "unknown" in commit:
        raise UserError(f"{what} was made with code that no commit holds ({commit})")


def _git(*arguments: str) -> str:
    # Somebody else may own the clone, as in a container: git would say nothing of it.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
