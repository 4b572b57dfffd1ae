"""Receptive fields and multiply-adds against figures worked out by hand."""

from emnist_jax import models
from emnist_jax.models.plain import Conv, GlobalAveragePool, MaxPool, Plain
from emnist_jax.models.summary import summarize


def test_a_chain_worked_out_by_hand():
    # 12x12 -> 10x10 -> 5x5 -> 3x3 -> 1x1: windows of 3, 2, 3 at distances of 1, 1, 2, then 3 at 2.
    layers = (
        Conv(4, 3, bias=True, batch_norm=True),
        MaxPool(),
        Conv(None, 3, relu=False),
        GlobalAveragePool(),
    )
    summary = summarize(Plain(num_classes=10, layers=layers, input_shape=(12, 12, 2)))
    assert summary.receptive_field == 1 + 2 + 1 + 2 * 2 + 2 * 2
    assert summary.multiply_adds == 10 * 10 * 3 * 3 * 2 * 4 + 3 * 3 * 3 * 3 * 4 * 10
    assert (summary.trainable, summary.non_trainable) == (72 + 4 + 8 + 360, 8)
    assert [(layer.name, layer.output_shape, layer.parameters) for layer in summary.layers] == [
        ("conv1", (1, 10, 10, 4), 76),
        ("norm1", (1, 10, 10, 4), 16),
        ("head", (1, 3, 3, 10), 360),
    ]


def test_dense_layers_count_and_reach_over_the_whole_image():
    summary = summarize(models.MODELS["lenet5"](num_classes=47))
    assert summary.receptive_field == 1 + 4 + 1 + 2 * 4 + 2 + 4 * 4
    convolutions = 28 * 28 * 5 * 5 * 3 * 6 + 10 * 10 * 5 * 5 * 6 * 16 + 5 * 5 * 16 * 120
    assert summary.multiply_adds == convolutions + 120 * 84 + 84 * 47


def test_strides_and_concatenation():
    summary = summarize(models.MODELS["densenet_layer_2"](num_classes=47))
    # Stem 7 (then distance 2), pool 3 (4), six 3x3 layers, pool 2 (8), twelve, then the mean over 4x4.
    assert summary.receptive_field == 7 + 2 * 2 + 6 * 2 * 4 + 1 * 4 + 12 * 2 * 8 + 3 * 8
