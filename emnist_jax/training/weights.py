"""Weights of the reference implementations, carried over to our networks.

The layers of the networks with a reference implementation have its names, with "_" for "." and "/"; the last layer is
"head". So one rule for each framework serves them all. Which reference a network follows is in its module's docstring.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emnist_jax.errors import UserError

# Also in Keras' older files, as are W_1 and b_1.
_HEADS = {"predictions", "conv_preds", "probs", "Logits", "fc", "fc1000", "classifier", "classifier_0"}
_KERAS = {
    "kernel": ("params", "kernel"),
    "depthwise_kernel": ("params", "kernel"),
    "W_1": ("params", "kernel"),
    "bias": ("params", "bias"),
    "b_1": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_PYTORCH = {
    "weight": ("params", "kernel"),
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
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return from_keras(_read_h5(path)) if kind == "keras" else from_pytorch(_read_safetensors(path))
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
                # Depthwise kernels are [h, w, C, 1] there, [h, w, 1, C] here; Keras 3 gives them no name of their own.
                if array.ndim == 4 and array.shape[-1] == 1:
                    array = array.swapaxes(-1, -2)
                _put(trees[tree], layer.replace("/", "_"), name, array)
    return trees["params"], trees["batch_stats"]


def from_pytorch(state_dict: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Translates the arrays of a PyTorch module's `state_dict`.

    A dense layer after flattening takes its inputs in PyTorch's order of channel, row and column, not in ours.

    Returns:
      Parameters and batch_stats, `{layer: {name: array}}`.

    Raises:
      ValueError: A variable that is none of a convolution's, a dense layer's or BatchNorm's.
    """
    trees = {"params": {}, "batch_stats": {}}
    for key, array in state_dict.items():
        layer, _, variable = key.rpartition(".")
        if variable == "num_batches_tracked":
            continue
        if variable not in _PYTORCH:
            raise ValueError(f"unknown variable {key}")
        tree, name = _PYTORCH[variable]
        if name == "kernel" and array.ndim == 1:
            name = "scale"
        elif name == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2))  # [out, in, h, w] to [h, w, in, out]
        _put(trees[tree], layer.replace(".", "_"), name, array)
    return trees["params"], trees["batch_stats"]


def _put(tree: dict, layer: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        raise ValueError(f"the {name} of {layer} is of {array.dtype}")
    if layer in _HEADS:
        layer = "head"
        if array.ndim == 4:  # a 1x1 convolution of the pooled features
            array = array.reshape(array.shape[-2:])
    tree.setdefault(layer, {})[name] = array


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_h5(path: str) -> dict[str, dict[str, np.ndarray]]:
    """Reads Keras' HDF5 format of weights, or the weights of a whole model in it."""
    import h5py

    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError("no layer_names in it; model.save('FILE.h5') writes the HDF5 format by layer name")
        layers = {}

        def read(path: str, item) -> None:
            if isinstance(item, h5py.Dataset):
                # "conv1_conv/conv1_conv/kernel:0", or older, "block1_conv1/block1_conv1_W_1:0".
                layer, _, name = path.partition("/")
                variable = name.rpartition("/")[2].partition(":")[0].removeprefix(f"{layer}_")
                if item.nbytes > item.id.get_storage_size():
                    raise ValueError(f"{path} is larger than what the file holds of it")
                layers.setdefault(layer, {})[variable] = item[()]

        # The names are also in the attributes, but there damage can keep libhdf5 busy for ever.
        root.visititems(read)
        return layers
