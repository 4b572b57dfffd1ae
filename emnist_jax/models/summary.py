"""Size, reach and work of a network, read off its traced computation."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from emnist_jax.models.layers import Network


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
      product_outputs: Number of values that these give.
    """

    layers: tuple[Layer, ...]
    trainable: int
    non_trainable: int
    receptive_field: int
    multiply_adds: int
    product_outputs: int


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
    counted = [0, 0]
    inputs = [None] * (len(jaxpr.jaxpr.invars) - 1) + [(1, 1)]
    ((receptive_field, _),) = _walk(jaxpr.jaxpr, inputs, counted)
    return Summary(
        # Dropout is the only layer without parameters.
        tuple(layer for layer in layers if layer.parameters),
        _size(variables["params"]),
        _size(variables.get("batch_stats", {})),
        receptive_field,
        *counted,
    )


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _walk(jaxpr, inputs: list, counted: list[int]) -> list:
    """Propagates receptive fields through a jaxpr, and adds its multiply-adds and what they give to `counted`.

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
            if multiply_adds := _multiply_adds(equation):
                counted[0] += multiply_adds
                counted[1] += equation.outvars[0].aval.size
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
