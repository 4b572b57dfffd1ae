"""Four virtual CPU devices for every test, and one store of compiled programs for the whole session."""

import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is nearly all of the time, so it optimizes little.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
# Without more threads than devices, virtual devices can wait for each other for ever.
os.environ["NPROC"] = "8"
_CACHE = tempfile.mkdtemp(prefix="emnist_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_sessionfinish():
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of one uninterrupted run, and its result."""
    from emnist_jax.training import loop
    from test_loop import make_config

    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train_and_evaluate(make_config(), workdir)
