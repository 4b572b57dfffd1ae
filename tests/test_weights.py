"""Weights of other frameworks, from files, in our networks."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from emnist_jax import models
from emnist_jax.errors import UserError
from emnist_jax.training import weights
from shared import write_h5


def initial(name: str, classes: int = 47) -> tuple[dict, dict]:
    """Returns shapes and no values: what is not loaded stays a ShapeDtypeStruct."""
    model = models.MODELS[name](num_classes=classes)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape)), train=False))
    return variables["params"], variables.get("batch_stats", {})


def random(shapes: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def keras_layers(params: dict, head: str = "predictions") -> dict:
    """LeNet-5 as a Keras file has it."""
    return {"input_1": {}, **{head if layer == "head" else layer: arrays for layer, arrays in params.items()}}


@pytest.mark.parametrize("group", [None, "model_weights"])
def test_a_keras_file_is_loaded(tmp_path, group):
    shapes, _ = initial("lenet5")
    params = random(shapes, 0)
    write_h5(tmp_path / "weights.h5", keras_layers(params), group)
    loaded, batch_stats = weights.initial_weights(f"keras:{tmp_path / 'weights.h5'}", shapes, {})
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert batch_stats == {}


@pytest.mark.parametrize("without_head", [False, True])
def test_the_head_of_other_classes_stays_ours(tmp_path, without_head):
    params = random(initial("lenet5", 1000)[0], 0)
    layers = keras_layers(params)
    if without_head:
        del layers["predictions"]
    write_h5(tmp_path / "weights.h5", layers)
    ours = random(initial("lenet5")[0], 1)
    loaded, _ = weights.initial_weights(f"keras:{tmp_path / 'weights.h5'}", ours, {})
    jax.tree.map(np.testing.assert_array_equal, loaded, params | {"head": ours["head"]})


def test_a_pytorch_file_is_loaded(tmp_path):
    shapes, stats_shapes = initial("mnist_squeeze_10", 10)
    params, stats = random(shapes, 0), random(stats_shapes, 1)
    state = {}
    for layer, arrays in params.items():
        if "kernel" in arrays:
            state[f"{layer}.weight"] = np.ascontiguousarray(arrays["kernel"].transpose(3, 2, 0, 1))
        else:
            state |= {f"{layer}.weight": arrays["scale"], f"{layer}.bias": arrays["bias"]}
            state |= {f"{layer}.running_mean": stats[layer]["mean"], f"{layer}.running_var": stats[layer]["var"]}
            state[f"{layer}.num_batches_tracked"] = np.array(3)
    save_file(state, tmp_path / "weights.safetensors")
    loaded = weights.initial_weights(f"pytorch:{tmp_path / 'weights.safetensors'}", shapes, stats_shapes)
    jax.tree.map(np.testing.assert_array_equal, loaded, (params, stats))


def test_translation_of_names_and_shapes():
    depthwise = np.arange(18.0).reshape(3, 3, 2, 1)
    gamma, beta, mean, variance = np.arange(8.0).reshape(4, 2)
    params, stats = weights.from_keras(
        {
            "dw": {"depthwise_kernel": depthwise},
            "dw_bn": {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance},
            "normalization": {"mean": mean, "variance": variance, "count": np.array(0)},
            "conv_preds": {"kernel": np.ones((1, 1, 2, 5)), "bias": np.ones(5)},
        }
    )
    assert params["dw"]["kernel"].shape == (3, 3, 1, 2)
    np.testing.assert_array_equal(params["dw"]["kernel"][1, 2, 0], depthwise[1, 2, :, 0])
    assert params["dw_bn"] == {"scale": gamma, "bias": beta} and stats == {"dw_bn": {"mean": mean, "var": variance}}
    assert params["head"]["kernel"].shape == (2, 5)

    dense = np.arange(6.0).reshape(2, 3)
    params, _ = weights.from_pytorch({"features.0.conv.weight": np.ones((4, 2, 3, 5)), "fc.weight": dense})
    assert params["features_0_conv"]["kernel"].shape == (3, 5, 2, 4)
    np.testing.assert_array_equal(params["head"]["kernel"], dense.T)


def test_what_does_not_fit_is_one_clear_error(tmp_path):
    shapes, _ = initial("lenet5")
    path = tmp_path / "weights.h5"

    def message(source):
        with pytest.raises(UserError) as error:
            weights.initial_weights(source, shapes, {})
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"cannot read the weights {path}" in message(f"keras:{path}")
    assert f"cannot read the weights {path}" in message(f"pytorch:{path}")
    path.write_bytes(b"no weights")
    assert f"cannot read the weights {path}" in message(f"keras:{path}")
    assert f"cannot read the weights {path}" in message(f"pytorch:{path}")
    h5py.File(path, "w").close()
    assert "layer_names" in message(f"keras:{path}")
    layers = keras_layers(random(shapes, 0))
    del layers["c3"]
    write_h5(path, layers)
    assert "holds another network: 2 parameters differ, first c3/bias" in message(f"keras:{path}")
