"""Bad files of weights: never a traceback, a hang, memory beyond what a file holds, or what are no weights."""

import os
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from emnist_jax import errors
from emnist_jax.training import weights
from shared import attempt, fuzz, memory_of_at_most, mutated, randoms, repeated, write_h5


@pytest.fixture(scope="module")
def weight_files(folder):
    """What intact files of weights hold, by kind."""
    kernel, head = np.ones((3, 3, 1, 2), np.float32), np.ones((2, 10), np.float32)
    write_h5(folder / "keras", {"c1": {"kernel": kernel, "bias": kernel[0, 0, 0]}, "predictions": {"kernel": head}})
    save_file({"c1.weight": kernel.T, "c1.bias": kernel[0, 0, 0], "fc.weight": head.T}, folder / "pytorch")
    return {kind: (folder / kind).read_bytes() for kind in ("keras", "pytorch")}


def check_weights(folder: Path, kind: str, stored: bytes) -> bool:
    """Loads them: arrays of floating-point numbers, or an error."""
    path = folder / "weights"
    path.write_bytes(stored)
    found = attempt(lambda: weights.load_file(f"{kind}:{path}"))
    if not isinstance(found, errors.UserError):
        assert all(array.dtype.kind == "f" for array in jax.tree.leaves(found))
        assert sum(array.nbytes for array in jax.tree.leaves(found)) <= 2 * len(stored)
    return not isinstance(found, errors.UserError)


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
@repeated(200)
@given(rng=randoms)
def test_damaged_weights(folder, weight_files, kind, rng):
    check_weights(folder, kind, mutated(rng, weight_files[kind]))


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
@repeated(50)
@given(noise=st.binary(max_size=200))
def test_random_bytes_as_weights(folder, weight_files, kind, noise):
    check_weights(folder, kind, noise)
    check_weights(folder, kind, weight_files[kind][:8] + noise)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shape": (1 << 20, 1 << 20), "dtype": "f4", "chunks": (1, 64)}, "larger than what the file holds"),
        ({"data": np.ones(3, np.int32)}, "int32"),
        ({"data": ["a", "b"]}, "object"),
        ({"data": np.ones(3, np.complex64)}, "complex64"),
    ],
)
def test_what_are_no_weights(tmp_path, data, message):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["c1"]
        file.create_dataset("c1/c1/kernel:0", **data)
    with memory_of_at_most(0):
        found = attempt(lambda: weights.load_file(f"keras:{path}"))
    assert isinstance(found, errors.UserError) and message in str(found)


def test_links_in_a_keras_file_lead_nowhere(tmp_path):
    path = tmp_path / "weights.h5"
    write_h5(tmp_path / "other.h5", {"c2": {"kernel": np.ones((2, 2))}})
    write_h5(path, {"c1": {"kernel": np.ones((2, 2))}})
    with h5py.File(path, "a") as file:
        file["c2"] = h5py.ExternalLink(tmp_path / "other.h5", "c2")
        file["c3"] = h5py.SoftLink("/c3")
        file["c1/self"] = file["c1"]
    params, _ = attempt(lambda: weights.load_file(f"keras:{path}"))
    assert params.keys() == {"c1"}


@pytest.mark.parametrize("source", ["", ":", "keras:", "keras:/dev/zero", "pytorch:/", f"keras:{'x' * 300}", "x" * 300])
def test_sources_that_are_no_files(source):
    assert isinstance(attempt(lambda: weights.initial_weights(source, {}, {})), errors.UserError)


@pytest.mark.parametrize("kind", ["keras", "pytorch"])
def test_a_pipe_for_weights(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    assert isinstance(attempt(lambda: weights.load_file(f"{kind}:{tmp_path / 'pipe'}")), errors.UserError)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "pytorch"])
def test_fuzz_weights(folder, weight_files, kind):
    fuzz(f"weights, {kind}", 5_000, lambda rng: check_weights(folder, kind, mutated(rng, weight_files[kind])))
