"""What a figure was measured with."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax


def environment() -> dict:
    """Returns the device, the versions and the commit that a result was made with."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy")
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        commit = subprocess.run(git, cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ""
    device = jax.devices()[0]
    # The cores that this process may use, if the system tells.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"CPU of {cores} core{'s' * (cores > 1)}" if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{jax.device_count()} x {kind}",
        "versions": {package: version(package) for package in packages} | {"python": sys.version.split()[0]},
        "commit": commit or "unknown",
    }
