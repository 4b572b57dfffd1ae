"""Prints the layers, parameters, receptive field and multiply-adds of a network.

    python -m emnist_jax.summary --config=configs/densenet.py
    python -m emnist_jax.summary --all

`--all` prints the counts of all networks beside the published ones. Receptive field and multiply-adds are computed from
the traced computation, not from the layers.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from jax.extend import core
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from emnist_jax import command_line, datasets, models
from emnist_jax.config import validate
from emnist_jax.errors import UserError
from emnist_jax.models.layers import Network

_ALL = flags.DEFINE_bool("all", False, "Print the counts of all networks")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row of the table; parameters include BatchNorm's running statistics."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of `summarize`.

    Attributes:
      layers: In the order of the computation.
      trainable: Number of trainable parameters.
      non_trainable: Number of BatchNorm's running statistics.
      receptive_field: Side, in pixels, of the square of the padded image that a logit depends on.
      multiply_adds: Of the convolutions and matrix products of one image's forward pass.
    """

    layers: tuple[Layer, ...]
    trainable: int
    non_trainable: int
    receptive_field: int
    multiply_adds: int


def summarize(model: Network) -> Summary:
    """Traces a network on one image; nothing is computed."""
    model = model.clone(convolution="xla")
    image = jnp.zeros((1, *model.input_shape))
    calls = []

    def record(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if context.module.path and context.method_name == "__call__":
            calls.append((context.module.path, type(context.module).__name__, outputs.shape))
        return outputs

    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))

    def size(path) -> int:
        total = 0
        for tree in variables.values():
            for part in path:
                tree = tree.get(part, {})
            total += _size(tree)
        return total

    layers = (Layer("/".join(path), kind, shape, size(path)) for path, kind, shape in calls)
    jaxpr = jax.make_jaxpr(lambda variables, image: model.apply(variables, image, train=False))(variables, image)
    counted = [0]
    inputs = [None] * (len(jaxpr.jaxpr.invars) - 1) + [(1, 1)]
    ((receptive_field, _),) = _walk(jaxpr.jaxpr, inputs, counted)
    return Summary(
        # Dropout is the only layer without parameters.
        tuple(layer for layer in layers if layer.parameters),
        _size(variables["params"]),
        _size(variables.get("batch_stats", {})),
        receptive_field,
        counted[0],
    )


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _walk(jaxpr, inputs: list, counted: list[int]) -> list:
    """Propagates receptive fields through a jaxpr, and adds its multiply-adds to `counted[0]`.

    `inputs` and the result hold (receptive field, distance between neighbours) of each variable, in pixels, or None if
    it does not depend on the image.
    """
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable):
        return None if isinstance(variable, core.Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None:
            results = _walk(getattr(inner, "jaxpr", inner), operands, counted)
        else:
            fields = [field for field in operands if field]
            result = (max(f for f, _ in fields), max(j for _, j in fields)) if fields else None
            window, stride = _window(equation)
            if result:
                result = (result[0] + (window - 1) * result[1], result[1] * stride)
            results = [result] * len(equation.outvars)
            counted[0] += _multiply_adds(equation)
        known |= zip(equation.outvars, results, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _window(equation) -> tuple[int, int]:
    """Returns the side and the stride of the window that an operation slides over the image."""
    name, params, shape = equation.primitive.name, equation.params, equation.invars[0].aval.shape
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return kernel[params["dimension_numbers"].rhs_spec[2]], params["window_strides"][0]
    if name.startswith("reduce_window"):
        return params["window_dimensions"][1], params["window_strides"][1]
    # Global pooling and flattening cover the whole image.
    pooled = name == "reduce_sum" and params["axes"] == (1, 2)
    flattened = name == "reshape" and len(shape) == 4 and equation.outvars[0].aval.ndim == 2
    if pooled or flattened:
        return shape[1], 1
    return 1, 1


def _multiply_adds(equation) -> int:
    output = equation.outvars[0].aval
    if equation.primitive.name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec
        return output.size * kernel.size // kernel.shape[spec[0]]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return output.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 0


def describe(config) -> None:
    """Prints the layers of a config's network."""
    validate(config)
    model = models.create(config.model, len(datasets.class_names(config.dataset.name)))
    summary = summarize(model)
    table = Table(title=f"{config.model.name}, input {_shape(model.input_shape)}")
    for column in ("layer", "kind", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for layer in summary.layers:
        table.add_row(layer.name, layer.kind, _shape(layer.output_shape[1:]), f"{layer.parameters:,}")
    console = Console()
    console.print(table)
    console.print(f"Receptive field: {summary.receptive_field} x {summary.receptive_field} pixels")
    console.print(f"Multiply-adds: {summary.multiply_adds:,}")
    console.print(f"Total params: {summary.trainable + summary.non_trainable:,}")
    console.print(f"Trainable params: {summary.trainable:,}")
    console.print(f"Non-trainable params: {summary.non_trainable:,}")


def describe_all() -> None:
    """Prints a Markdown table of `models.SETTINGS`."""
    table = Table(box=box.MARKDOWN)
    for column in ("model", "input", "classes", "total", "trainable", "multiply-adds", "published", "source"):
        table.add_column(column, justify="left" if column in ("model", "source") else "right", no_wrap=True)
    for name, classes in track(models.SETTINGS, "Tracing the networks", console=Console(stderr=True), transient=True):
        model = (models.MODELS | models.IMAGENET)[name](num_classes=classes)
        summary = summarize(model)
        published = models.PUBLISHED.get((name, classes))
        table.add_row(
            f"`{name}`",
            _shape(model.input_shape),
            f"{classes:,}",
            f"{summary.trainable + summary.non_trainable:,}",
            f"{summary.trainable:,}",
            f"{summary.multiply_adds:,}",
            f"{published.count:,} {published.of}" if published else "",
            published.source if published else "",
        )
    # The longest row fits, however narrow the terminal is: the table goes into the README.
    Console(width=200).print(table)


def _shape(shape) -> str:
    return " x ".join(map(str, shape))


def main(config) -> None:
    if _ALL.value:
        describe_all()
    elif config is None:
        raise UserError("pass --config=FILE, e.g. --config=configs/densenet.py, or --all")
    else:
        describe(config)


if __name__ == "__main__":
    command_line.run(main, config_required=False)
