"""A JAX function as an ONNX graph: its jaxpr, one primitive after the other.

It knows what the networks of `models.MODELS` are made of, in evaluation. A converter of all of JAX is jax2onnx, which
cannot be installed beside the orbax-checkpoint that training needs (jax2onnx 0.17.1), or fails with its JAX (0.13.0).
"""

from collections.abc import Callable

import jax
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper, numpy_helper

from emnist_jax.errors import UserError

# Of 2021 and 2022: what runs ONNX files today knows them.
OPSET, IR_VERSION = 17, 8

_ELEMENTWISE = {
    "add": "Add",
    "div": "Div",
    "exp": "Exp",
    "gt": "Greater",
    "logistic": "Sigmoid",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "sub": "Sub",
    "tanh": "Tanh",
}


def convert(function: Callable, inputs: dict[str, jax.ShapeDtypeStruct], output: str) -> onnx.ModelProto:
    """Converts a function of arrays.

    Args:
      function: Returns one array. The arrays that it closes over become the graph's constants.
      inputs: Name -> shape and dtype of each argument; one dimension may be symbolic (`jax.export.symbolic_shape`).
      output: Name of the result.

    Raises:
      UserError: The function has a primitive that this module does not know.
    """
    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = _Graph()
    (result,) = graph.evaluate(closed.jaxpr, closed.consts, list(inputs))
    graph.nodes.append(helper.make_node("Identity", [graph.name(result)], [output]))
    described = [
        [_value_info(name, shape) for name, shape in values]
        for values in (inputs.items(), [(output, closed.out_avals[0])])
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "network", *described, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="emnist_jax",
    )
    onnx.checker.check_model(model)
    return model


def _value_info(name: str, array) -> onnx.ValueInfoProto:
    dimensions = [d if isinstance(d, int) else str(d) for d in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dimensions)


class _Graph:
    """A graph under construction. A value is the name of a tensor or, if it depends on no input, an array."""

    def __init__(self):
        self.nodes, self.constants = [], []
        self._names = {}

    def name(self, value: str | np.ndarray) -> str:
        if isinstance(value, str):
            return value
        if id(value) not in self._names:
            name = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(value, name))
            self._names[id(value)] = name, value  # kept alive, so that no other array gets its id
        return self._names[id(value)][0]

    def add(self, operator: str, *values: str | np.ndarray, outputs: int = 1, **attributes) -> list[str]:
        names = [f"{operator.lower()}_{len(self.nodes)}" + f"_{i}" * (outputs > 1) for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(map(self.name, values)), names, **attributes))
        return names

    def evaluate(self, jaxpr, constants, arguments) -> list[str | np.ndarray]:
        """Adds all equations of a jaxpr, and returns its results."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_array, constants), *arguments], strict=True))

        def read(variable):
            return _array(variable.val) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            values |= zip(equation.outvars, self._equation(equation, list(map(read, equation.invars))), strict=True)
        return list(map(read, jaxpr.outvars))

    def _equation(self, equation, inputs: list[str | np.ndarray]) -> list[str | np.ndarray]:
        name, parameters = equation.primitive.name, equation.params
        if inner := parameters.get("jaxpr") or parameters.get("call_jaxpr"):
            return self.evaluate(inner.jaxpr, inner.consts, inputs)
        # What depends on constants alone is computed now, but int8 stays: it makes the file small.
        if all(isinstance(value, np.ndarray) and value.dtype != np.int8 for value in inputs) and all(
            isinstance(d, int) for variable in equation.outvars for d in variable.aval.shape
        ):
            outputs = equation.primitive.bind(*inputs, **parameters)
            return list(map(_array, outputs if equation.primitive.multiple_results else [outputs]))
        if name in _ELEMENTWISE:
            return self.add(_ELEMENTWISE[name], *inputs)
        if name not in _RULES:
            raise UserError(f"this network cannot be written as ONNX: JAX's {name} is not known; use --to=stablehlo")
        return _RULES[name](self, equation, *inputs)


def _array(value) -> np.ndarray:
    return np.asarray(value)


def _require(condition: bool, equation) -> None:
    if not condition:
        raise UserError(
            f"this network cannot be written as ONNX: JAX's {equation.primitive.name} is used in a way that is not "
            "known; use --to=stablehlo"
        )


def _sizes(shape) -> np.ndarray:
    """Returns a shape for ONNX' Reshape; at most one dimension is symbolic."""
    return np.array([d if isinstance(d, int) else -1 for d in shape], np.int64)


def _broadcast(graph, equation, x):
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    # A symbolic dimension that the operand does not have stays 1: what follows broadcasts by itself.
    aligned = [before[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))]
    (x,) = graph.add("Reshape", x, _sizes(aligned))
    wanted = [d if isinstance(d, int) else 1 for d in shape]
    if all(a == b or not isinstance(b, int) for a, b in zip(aligned, shape, strict=True)):
        return [x]
    return graph.add("Expand", x, np.array(wanted, np.int64))


def _cast(graph, equation, x):
    return graph.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(equation.params["new_dtype"]))


def _concatenate(graph, equation, *xs):
    return graph.add("Concat", *xs, axis=equation.params["dimension"])


def _convolution(graph, equation, x, kernel):
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    _require(set(parameters["lhs_dilation"]) == {1} and parameters["batch_group_count"] == 1, equation)
    (x,) = graph.add("Transpose", x, perm=numbers.lhs_spec)
    (kernel,) = (
        [np.ascontiguousarray(kernel.transpose(numbers.rhs_spec))]
        if isinstance(kernel, np.ndarray)
        else graph.add("Transpose", kernel, perm=numbers.rhs_spec)
    )
    (x,) = graph.add(
        "Conv",
        x,
        kernel,
        strides=parameters["window_strides"],
        pads=[pad for side in zip(*parameters["padding"], strict=True) for pad in side],
        dilations=parameters["rhs_dilation"],
        group=parameters["feature_group_count"],
    )
    return graph.add("Transpose", x, perm=np.argsort(numbers.out_spec))


def _expm1(graph, equation, x):
    (x,) = graph.add("Exp", x)
    return graph.add("Sub", x, np.ones((), np.float32))


def _matrix_product(graph, equation, x, y):
    (contracted, batched) = equation.params["dimension_numbers"]
    last = equation.invars[0].aval.ndim - 1
    _require(contracted == ((last,), (0,)) and batched == ((), ()) and equation.invars[1].aval.ndim == 2, equation)
    return graph.add("MatMul", x, y)


def _pad(graph, equation, x, value):
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    _require(not any(interior), equation)
    return graph.add("Pad", x, np.array([*low, *high], np.int64), value)


def _pool(operator: str, **attributes):
    def rule(graph, equation, x):
        parameters = equation.params
        _require(
            {*parameters["base_dilation"], *parameters["window_dilation"]} == {1}
            and [parameters["window_dimensions"][i] for i in (0, -1)] == [1, 1]
            and [parameters["padding"][i] for i in (0, -1)] == [(0, 0), (0, 0)],
            equation,
        )
        _, *window, _ = parameters["window_dimensions"]
        (x,) = graph.add("Transpose", x, perm=(0, 3, 1, 2))
        (x,) = graph.add(
            operator,
            x,
            kernel_shape=window,
            strides=parameters["window_strides"][1:-1],
            pads=[pad for side in zip(*parameters["padding"][1:-1], strict=True) for pad in side],
            **attributes,
        )
        (x,) = graph.add("Transpose", x, perm=(0, 2, 3, 1))
        return [x] if operator == "MaxPool" else graph.add("Mul", x, np.array(np.prod(window), np.float32))

    return rule


def _reshape(graph, equation, x):
    return graph.add("Reshape", x, _sizes(equation.params["new_sizes"]))


def _select(graph, equation, which, otherwise, chosen):
    return graph.add("Where", which, chosen, otherwise)


def _split(graph, equation, x):
    sizes = np.array(equation.params["sizes"], np.int64)
    return graph.add("Split", x, sizes, outputs=len(sizes), axis=equation.params["axis"])


def _square(graph, equation, x):
    return graph.add("Mul", x, x)


def _sum(graph, equation, x):
    return graph.add("ReduceSum", x, np.array(equation.params["axes"], np.int64), keepdims=0)


def _transpose(graph, equation, x):
    return graph.add("Transpose", x, perm=equation.params["permutation"])


# Primitive -> rule(graph, equation, *inputs), which returns the outputs.
_RULES = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dot_general": _matrix_product,
    "expm1": _expm1,
    "pad": _pad,
    "reduce_sum": _sum,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool", count_include_pad=1),
    "reshape": _reshape,
    "select_n": _select,
    "split": _split,
    "square": _square,
    "transpose": _transpose,
}
