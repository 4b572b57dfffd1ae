"""What a newcomer types first: help, and Ctrl-C before anything has begun."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emnist_jax import command_line

ROOT = Path(__file__).parent.parent


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_help_names_the_flags_and_all_commands():
    process = start("emnist_jax.main", "--help")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert all(flag in stdout for flag in ("--config:", "--config.KEY:", "--workdir:", "--[no]distributed"))
    files = (path for path in (ROOT / "emnist_jax").glob("*.py") if "command_line.run(" in path.read_text())
    assert {path.stem for path in files} == set(command_line.COMMANDS)
    assert all(f"python -m emnist_jax.{name}" in stdout for name in command_line.COMMANDS)


@pytest.mark.parametrize("seconds", [1.0, 1.5])
def test_ctrl_c_in_the_first_second_is_one_line(seconds, tmp_path):
    process = start("emnist_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    # Python itself takes a moment to start: until then the system ends it.
    assert process.returncode in (75, -signal.SIGINT)
    assert stderr in ("stopped by SIGINT; the same command resumes\n", "")
    assert stdout == ""


def test_only_what_trains_promises_to_resume():
    process = start("emnist_jax.predict", "--show=/proc/cuts.png", "docs/note.jpg")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.match(r"error: \[Errno \d+\] .*\n", stderr) and "resumes" not in stderr
