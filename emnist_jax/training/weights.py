"""Initial weights from elsewhere (`config.init_from`): another run's, or a reference implementation's.

If a network has a reference implementation, its layers have the names that they have there, with "_" for "." and "/";
the last layer is "head". So one rule for each framework serves all networks. A network's module names its reference.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from emnist_jax.errors import UserError, first_line
from emnist_jax.models.layers import Network
from emnist_jax.training import hosts

log = logging.getLogger(__name__)

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


# What may differ between two networks with the same parameters: it does not change what they compute in evaluation.
_FREE_FIELDS = {
    *("num_classes", "initializer", "batch_norm_momentum", "sync_batch_norm", "axis_name", "dtype", "convolution"),
    *("parent", "name"),
}


def initial_weights(source: str, params, batch_stats, class_names: Sequence[str] | None = None) -> tuple[Any, Any]:
    """Loads weights into our network; its head stays if theirs is missing or has other classes.

    Args:
      source: A finished run's workdir, a network as in `classifier.load`, or a file as in `load_file`.
      params: The initial parameters of our network.
      batch_stats: Its initial running statistics.
      class_names: The names of its classes; None: any of the same number are the same.

    Returns:
      Parameters and batch_stats, of numpy arrays, in all processes.

    Raises:
      UserError: They cannot be read, or belong to a network that differs from ours in more than the classes.
    """
    merged = None
    with hosts.all_or_none("transferred"):
        if hosts.is_first():
            loaded = load_file(source) if _is_file(source) else _load_trained(source, class_names)
            merged = [_merge(source, *pair) for pair in zip(loaded, jax.device_get((params, batch_stats)), strict=True)]
    params, batch_stats = hosts.broadcast(merged)
    return params, batch_stats


def pruned(params, fraction: float):
    """Sets the smallest weights of every kernel to 0, and of an RBF head's centres; biases and BatchNorm keep theirs.

    Each kernel loses the same fraction, as their sizes cannot be compared: BatchNorm undoes a kernel's scale. It is one
    step of magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626); training goes on with the others.

    Args:
      params: Of numpy arrays.
      fraction: Of each kernel's weights, by magnitude.
    """

    def prune(kernel):
        number = round(fraction * kernel.size) if kernel.ndim > 1 else 0
        smallest = np.argsort(np.abs(kernel), axis=None, kind="stable")[:number]
        kernel = np.array(kernel)
        kernel.reshape(-1)[smallest] = 0
        return kernel

    return jax.tree.map(prune, params)


def _is_file(source: str) -> bool:
    return source.startswith(("keras:", "pytorch:"))


def _load(source: str):
    """Returns the `Classifier` that a source names which is no reference's file.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    from emnist_jax.inference import classifier  # late: scikit-image takes a second, and few runs need it

    try:
        return classifier.load(source)
    except UserError as error:
        raise UserError(f"config.init_from={source}: {error}") from error


def _load_trained(source: str, class_names: Sequence[str] | None) -> tuple[Any, Any]:
    """Returns the parameters and batch_stats of a trained network, without the head if its classes are others."""
    trained = _load(source)
    params = trained.variables["params"]
    if class_names and tuple(class_names) != trained.class_names:
        params = {layer: of_layer for layer, of_layer in params.items() if layer != "head"}
    return params, trained.variables["batch_stats"]


@hosts.all_or_none("asked what leaked")
def leaked(config, dataset_sha256: str, target_sha256: str | None = None) -> bool | None:
    """Tells whether the weights of `config.init_from` know images that we validate or test on; None: not known.

    Args:
      config: The whole config.
      dataset_sha256: Of our images, split by split.
      target_sha256: The same of `config.transfer.target`.
    """
    if _is_file(config.init_from) or not hosts.is_first():
        return None
    result = _load(config.init_from).result
    try:
        clean_of = result["dataset_sha256"], result.get("target_sha256")
        known = clean_of == (dataset_sha256, target_sha256) if target_sha256 else dataset_sha256 in clean_of
        return result["leaked"] if result["leaked"] is not False or known else None
    except KeyError:  # made by an earlier version
        return None


@hosts.all_or_none("compared")
def check_same_network(config, model: Network) -> None:
    """Compares our network with the trained one that `config.init_from` names, unless that is a reference's file.

    Networks may have the same parameters and yet compute something else. Another scaling of the images is logged.

    Raises:
      UserError: The networks differ in more than the classes.
    """
    if _is_file(config.init_from) or not hosts.is_first():
        return
    trained = _load(config.init_from)
    for field in dataclasses.fields(model):
        if field.name not in _FREE_FIELDS and not field.name.endswith("_dropout"):
            was, wanted = getattr(trained.model, field.name, None), getattr(model, field.name)
            if was != wanted:
                raise UserError(
                    f"config.init_from={config.init_from} holds another network: {field.name} is {was}, not {wanted}"
                )
    for key in ("mean", "std"):
        was, wanted = trained.config.dataset[key], config.dataset[key]
        if was != wanted:
            log.warning("init_from: dataset.%s was %g there, is %g here", key, was, wanted)


def _merge(source: str, theirs, ours):
    """Returns their leaves in our structure, but our own head if its shapes differ."""
    theirs = flax.traverse_util.flatten_dict(theirs)
    merged = flax.traverse_util.flatten_dict(ours)
    shapes = {path: leaf.shape for path, leaf in merged.items()}
    differing = {
        "/".join(path)
        for path in theirs.keys() | shapes.keys()
        if path not in theirs or path not in shapes or theirs[path].shape != shapes[path]
    }
    head = {path for path in shapes.keys() | theirs.keys() if path[0] == "head"}
    if unexpected := sorted(differing - {"/".join(path) for path in head}):
        raise UserError(
            f"config.init_from={source} holds another network: {len(unexpected)} parameters differ, "
            f"first {unexpected[0]}"
        )
    if differing:
        log.info("init_from: the head has no match there and keeps its initial weights")
    merged |= {
        path: np.asarray(leaf, merged[path].dtype) for path, leaf in theirs.items() if not (differing and path in head)
    }
    return flax.traverse_util.unflatten_dict(merged)


def load_file(source: str) -> tuple[dict, dict]:
    """Reads a file of weights.

    Args:
      source: "keras:FILE.h5", with the layers of `keras.applications` by name, or "pytorch:FILE.safetensors".

    Returns:
      Parameters and batch_stats, `{layer: {name: array}}`, with the reference's head, if any, as "head".

    Raises:
      UserError: The file cannot be read, or is of another format.
    """
    kind, _, path = source.partition(":")
    path = os.path.expanduser(path)
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return from_keras(_read_h5(path)) if kind == "keras" else from_pytorch(_read_safetensors(path))
    # A damaged file shows as many kinds of exception.
    except Exception as error:
        raise UserError(f"cannot read the weights {path}: {first_line(error)}") from error


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
                _add(trees[tree], layer.replace("/", "_"), name, array)
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
        _add(trees[tree], layer.replace(".", "_"), name, array)
    return trees["params"], trees["batch_stats"]


def _add(tree: dict, layer: str, name: str, array: np.ndarray) -> None:
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
