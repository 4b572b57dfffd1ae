"""Weights of the reference implementations, carried over to our networks.

The networks' layers have the reference's names, with "_" for "."; the last layer is "head". So one rule for each
framework serves every network: which reference a network follows is in its module's docstring.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import load_file

from emnist_jax.errors import UserError

_HEADS = {"predictions", "conv_preds", "fc", "fc1000", "classifier", "classifier_0"}
_KERAS = {
    "kernel": ("params", "kernel"),
    "depthwise_kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_PYTORCH = {
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def load(source: str) -> tuple[dict, dict]:
    """Reads a file of weights.

    Args:
      source: "keras:FILE.h5", with the layers of `keras.applications` by name, or "pytorch:FILE.safetensors".

    Returns:
      Parameters and batch_stats, `{layer: {name: array}}`, with the reference's head, if any, as "head".

    Raises:
      UserError: The file cannot be read, or is of another format.
    """
    kind, _, path = source.partition(":")
    if not Path(path).is_file():
        raise UserError(f"cannot read the weights {path}: no such file")
    try:
        return from_keras(_read_h5(Path(path))) if kind == "keras" else from_pytorch(load_file(path))
    # A damaged file shows as many kinds of exception.
    except Exception as error:
        raise UserError(f"cannot read the weights {path}: {str(error).strip().partition(chr(10))[0]}") from error


def from_keras(layers: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[dict, dict]:
    """Translates `{layer: {variable: array}}` of a Keras model; layers without a counterpart here are left out.

    Returns:
      Parameters and batch_stats, `{layer: {name: array}}`.
    """
    trees = {"params": {}, "batch_stats": {}}
    for layer, variables in layers.items():
        for variable, array in variables.items():
            if variable in _KERAS:
                tree, name = _KERAS[variable]
                # Depthwise kernels are [h, w, C, 1] there, [h, w, 1, C] here.
                if array.ndim == 4 and array.shape[-1] == 1:
                    array = array.swapaxes(-1, -2)
                _put(trees[tree], layer, name, array)
    return trees["params"], trees["batch_stats"]


def from_pytorch(state_dict: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Translates the arrays of a PyTorch module's `state_dict`.

    Returns:
      Parameters and batch_stats, `{layer: {name: array}}`.
    """
    trees = {"params": {}, "batch_stats": {}}
    for key, array in state_dict.items():
        layer, _, variable = key.rpartition(".")
        if variable == "num_batches_tracked":
            continue
        if variable == "weight":
            tree, name = "params", "scale" if array.ndim == 1 else "kernel"
            # [out, in, h, w] to [h, w, in, out].
            array = np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array
        else:
            tree, name = _PYTORCH[variable]
        _put(trees[tree], layer.replace(".", "_"), name, array)
    return trees["params"], trees["batch_stats"]


def _put(tree: dict, layer: str, name: str, array: np.ndarray) -> None:
    if layer in _HEADS:
        layer = "head"
        if array.ndim == 4:  # a 1x1 convolution of the pooled features
            array = array.reshape(array.shape[-2:])
    tree.setdefault(layer, {})[name] = array


def _read_h5(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads Keras' HDF5 format of weights, or the weights of a whole model in it."""
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError("no layer_names in it; model.save('FILE.h5') writes the HDF5 format by layer name")
        layers = {}
        for layer in map(_text, root.attrs["layer_names"]):
            for name in map(_text, root[layer].attrs["weight_names"]):
                # "conv1_conv/kernel:0"
                variable = name.rpartition("/")[2].partition(":")[0]
                layers.setdefault(layer, {})[variable] = np.asarray(root[layer][name])
        return layers


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
