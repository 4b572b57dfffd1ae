"""What holds for every test: four virtual CPU devices, and nothing is compiled, traced or drawn twice without need."""

import collections
import copy
import functools
import os
import shutil
import tempfile

import pytest

from processes import XLA_FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=4 {XLA_FLAGS}"
# Without more threads than devices, virtual devices can wait for each other for ever.
os.environ["NPROC"] = "8"
_CACHE = tempfile.mkdtemp(prefix="emnist_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# They import PyTorch and Keras, which takes seconds.
_COMPARISONS = ("test_parity_keras.py", "test_parity_pytorch.py")


def pytest_ignore_collect(collection_path, config):
    if collection_path.name in _COMPARISONS and "not parity" in config.option.markexpr:
        return True
    return None


def pytest_sessionfinish():
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def built_once():
    """Lets runs of equal configs in this process share what is built of the config alone: data and programs.

    Tracing and lowering take half of the time of a run whose programs have been compiled before. The network of the
    tests is known from here on, after the tests of all networks have been collected.
    """
    from emnist_jax import models
    from emnist_jax.training import loop, train_step
    from shared import Tiny

    class Kept(dict):
        def clear(self) -> None:
            """Keeps the programs of all configs."""

    build, compile_all = loop.build, loop.Training.compile
    runs, programs = {}, collections.defaultdict(Kept)

    def build_once(config):
        if not config.dataset.name.startswith("synthetic/"):
            return build(config)  # the files may change
        key = str(config), train_step.make_mesh()
        if key not in runs:
            runs[key] = build(copy.deepcopy(config))  # for a test may change it
        return runs[key]

    @functools.wraps(compile_all)
    def compile_once(training, _):
        compile_all(training, programs[training.run.mesh])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", Tiny)
        patch.setattr(loop, "build", build_once)
        patch.setattr(loop.Training, "compile", compile_once)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory, built_once):
    """The workdir of one uninterrupted run, and its result."""
    from emnist_jax.training import loop
    from shared import make_config

    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train_and_evaluate(make_config(), workdir)


@pytest.fixture(autouse=True)
def no_pictures():
    """Keeps runs within a test from drawing for TensorBoard; `finished` draws."""
    from emnist_jax.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_augmented_inputs", lambda self: None)
        patch.setattr(loop.figures, "confusion_figure", lambda *arguments: None)
        patch.setattr(loop.TensorBoard, "figure", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the tests of a file share."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(autouse=True)
def close_log_files():
    """Closes the log files of runs that a test let fail."""
    from emnist_jax.reporting import terminal

    yield
    terminal.stop_log()
