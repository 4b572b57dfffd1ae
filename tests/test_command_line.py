"""What a newcomer types first: help, and Ctrl-C before anything has begun."""

import os
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


def test_help_names_the_flags():
    process = start("emnist_jax.main", "--help")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert all(flag in stdout for flag in ("--config:", "--config.KEY:", "--workdir:", "--[no]distributed"))


def test_the_package_lists_all_commands():
    stdout, stderr = start("emnist_jax").communicate(timeout=60)
    files = (path for path in (ROOT / "emnist_jax").glob("*.py") if "command_line.run(" in path.read_text())
    assert {path.stem for path in files} == set(command_line.COMMANDS)
    lines = re.findall(r"python -m emnist_jax\.(\w+) +[A-Z][^:`\n]+\n", stdout)
    assert (lines, stderr) == (list(command_line.COMMANDS), "")


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_ctrl_c_before_anything_has_begun_is_one_line(seconds, tmp_path):
    process = start("emnist_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}")
    # Python itself takes a moment to start: until then the system ends it.
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 60
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (75, "")
    assert stderr == "stopped by SIGINT; the same command resumes\n"


@pytest.mark.ci
def test_only_what_trains_promises_to_resume():
    process = start("emnist_jax.predict", "--show=/proc/cuts.png", "docs/note.jpg")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.match(r"error: \[Errno \d+\] .*\n", stderr) and "resumes" not in stderr


def test_no_command_loads_jax_before_it_has_begun():
    """Its settings, among them where compiled programs are kept, are made first."""
    modules = ", ".join(f"emnist_jax.{name}" for name in command_line.COMMANDS)
    command = [sys.executable, "-c", f"import sys, {modules}; assert 'jax' not in sys.modules"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_training_does_not_load_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was loaded')")
    command = [sys.executable, "-c", "import emnist_jax.training.loop, sys; assert 'torch' not in sys.modules"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def cache_of_its_own(tmp_path, monkeypatch):
    """A user's cache folder, and none of JAX's variables."""
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    os.environ.pop("JAX_COMPILATION_CACHE_MAX_SIZE", None)  # monkeypatch puts back the others


def test_compiled_programs_go_to_the_users_cache_folder(cache_of_its_own):
    command_line.keep_compiled_programs()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == cache_of_its_own / "emnist_jax" and folder.is_dir()
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(2**30)


def test_a_program_without_its_time_is_removed(cache_of_its_own):
    command_line.keep_compiled_programs()
    folder = Path(os.environ.pop("JAX_COMPILATION_CACHE_DIR"))
    for name in ("whole-cache", "whole-atime", "half-cache", "new-cache"):
        (folder / name).touch()
    for name in ("whole-cache", "half-cache"):
        os.utime(folder / name, (0, 0))
    command_line.keep_compiled_programs()
    assert {path.name for path in folder.iterdir()} == {"whole-cache", "whole-atime", "new-cache"}


def test_a_program_that_another_process_removes_meanwhile_is_no_error(cache_of_its_own, monkeypatch):
    command_line.keep_compiled_programs()
    folder = Path(os.environ.pop("JAX_COMPILATION_CACHE_DIR"))
    monkeypatch.setattr(Path, "glob", lambda *_: [folder / "gone-cache"])
    command_line.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)


def test_jaxs_own_variable_decides_where_compiled_programs_go(cache_of_its_own, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    command_line.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not list(cache_of_its_own.iterdir())


def test_without_a_cache_folder_programs_are_compiled_each_time(cache_of_its_own, monkeypatch):
    (cache_of_its_own / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_of_its_own / "file"))
    command_line.keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.slow
def test_a_damaged_compiled_program_is_compiled_again(cache_of_its_own, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    outputs = []
    for _ in range(2):
        process = start("emnist_jax.predict", "docs/note.jpg")
        stdout, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        outputs.append(stdout)
        programs = list(cache_of_its_own.glob("emnist_jax/*/*-cache"))
        assert programs
        for path in programs:
            path.write_bytes(path.read_bytes()[:100])
    assert outputs[0] == outputs[1] and "READ ME 42" in outputs[0]


@pytest.mark.slow
def test_processes_share_the_compiled_programs(cache_of_its_own, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for at_once in (2, 1):
        processes = [start("emnist_jax.predict", "docs/note.jpg") for _ in range(at_once)]
        for process in processes:
            stdout, stderr = process.communicate(timeout=240)
            assert (process.returncode, stderr) == (0, "")
            assert "READ ME 42" in stdout
    assert list(cache_of_its_own.glob("emnist_jax/*/*-cache"))
