"""The operator table: making nodes with their result types inferred, and what passes may assume.

Enter: an operator, its inputs and attributes. Leave: interned nodes. Nothing here evaluates
anything, and a node never changes: `rebuild` gives the same operator on other inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir import onnx_inference, onnx_schema
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, WEIGHT, Node, output
from whitebox.ir.onnx_schema import Form
from whitebox.ir.shapes import RULES, Call, Misfit
from whitebox.ir.shapes.control import BODY, retype
from whitebox.ir.shapes.elementwise import ELEMENTWISE
from whitebox.ir.shapes.reduction import REDUCTIONS
from whitebox.ir.shapes.rule import normal_axis
from whitebox.ir.shapes.spatial import CONVOLUTIONS, POOLS, resolve_window
from whitebox.ir.types import TensorType, Type

WHITEBOX = "whitebox."

# Attributes of our own on ONNX operators: how many trailing inputs a body captures from outside,
# and which draw a random operator makes (so that no two of them merge).
N_CAPTURED, DRAW = "n_captured", "draw"


@dataclass(frozen=True, slots=True)
class Traits:
    """What passes and the compiler may assume of an operator.

    elementwise: a result element depends on the elements that broadcast to it, and nothing else.
    view: the result has the bytes of the first input, in the same (C) order.
    static_inputs: inputs (shapes, axes, pads, bounds, …) whose values a kernel is compiled for.
    """

    elementwise: bool = False
    commutative: bool = False
    view: bool = False
    random: bool = False
    reduction: bool = False
    static_inputs: tuple[int, ...] = ()


_COMMUTATIVE = "Add Mul And Or Xor BitwiseAnd BitwiseOr BitwiseXor Equal Max Min Mean Sum".split()
_VIEWS = "Reshape Squeeze Unsqueeze Flatten Identity".split()
_RANDOM = (
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial Dropout"
).split()
_REDUCTIONS = (*REDUCTIONS, "ArgMax", "ArgMin")
_REDUCTIONS += ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")

_STATIC_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(REDUCTIONS, (1,)),
    **dict.fromkeys("Reshape Squeeze Unsqueeze Expand Tile TopK Split OneHot".split(), (1,)),
    **dict.fromkeys("CumSum CumProd Trilu CenterCropPad AffineGrid SplitToSequence".split(), (1,)),
    **dict.fromkeys("BlackmanWindow HammingWindow HannWindow ConstantOfShape".split(), (0,)),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Range": (0, 1, 2),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
}

_DEFAULT_TRAITS = Traits()


def _traits_of(op: str) -> Traits:
    return Traits(
        elementwise=op in ELEMENTWISE,
        commutative=op in _COMMUTATIVE,
        view=op in _VIEWS,
        random=op in _RANDOM,
        reduction=op in _REDUCTIONS,
        static_inputs=_STATIC_INPUTS.get(op, ()),
    )


TRAITS: Mapping[str, Traits] = {
    op: _traits_of(op)
    for op in sorted({*ELEMENTWISE, *_VIEWS, *_RANDOM, *_REDUCTIONS, *_STATIC_INPUTS})
}


def traits(op: str) -> Traits:
    """The traits of an operator; nothing is assumed of one that the table does not list."""
    return TRAITS.get(op, _DEFAULT_TRAITS)


def node(
    op: str,
    *inputs: Node | None,
    version: int | None = None,
    outputs: int = 1,
    **attrs: Any,
) -> Node:
    """The node of an operator on inputs, its types inferred and defaults written out.

    `version` is the opset whose form of the operator is meant; by default the newest.
    """
    return make(op, inputs, attrs, version, outputs)


def make(
    op: str,
    inputs: Sequence[Node | None],
    attrs: Mapping[str, Any],
    version: int | None = None,
    outputs: int = 1,
) -> Node:
    """As `node`, for attributes whose names are not Python's (`op`, `version`, …)."""
    given = tuple(inputs)
    if op.startswith(WHITEBOX):
        since, complete = 0, dict(attrs)
    else:
        form = _form(op, version or 0)
        while len(given) > form.min_inputs and given[-1] is None:
            given = given[:-1]
        since, complete = form.since, _checked(form, given, attrs, outputs)
    try:
        complete = _resolved(op, given, complete)
    except _MISFITS as misfit:
        raise _invalid(op, given, misfit) from misfit
    types = infer(op, since, given, complete, outputs)
    return Node.make(op, given, complete, types, since)


def rebuild(node: Node, inputs: Sequence[Node | None]) -> Node:
    """The same operator and attributes on new inputs, result types inferred anew."""
    given = tuple(inputs)
    if given == node.inputs or node.op in (INPUT, CONSTANT, WEIGHT):
        return node
    if node.op == OUTPUT:
        (source,) = given
        assert source is not None
        return output(source, node.attrs["index"])  # type: ignore[arg-type]
    return make(node.op, given, node.attrs, node.version or None, len(node.types))


def rewire(node: Node, inputs: Sequence[Node | None]) -> Node:
    """As `rebuild`, but types are inferred only where new inputs may change them."""
    for old, new in zip(node.inputs, inputs, strict=True):
        if old is None or new is None or old is new:
            continue
        if new.is_constant or old.types != new.types:
            return rebuild(node, inputs)
    return node.with_inputs(inputs)


def infer(
    op: str,
    version: int,
    inputs: Sequence[Node | None],
    attrs: Mapping[str, Any],
    n_outputs: int = 1,
) -> tuple[Type, ...]:
    """The result types of an operator; dimensions that cannot be told are None."""
    call = Call(op, version, tuple(inputs), attrs, n_outputs)
    rule = RULES.get(op)
    try:
        found = rule(call) if rule is not None else None
        if found is None:
            found = onnx_inference.infer(call)
    except _MISFITS as misfit:
        raise _invalid(op, call.inputs, misfit) from misfit
    types = found if isinstance(found, tuple) else (found,)
    if len(types) < n_outputs:
        raise InvalidModel(f"{op} has {len(types)} results, not {n_outputs}; correct the model")
    return types[:n_outputs]


# What a rule raises; beside Misfit, what it trips over when attributes make no sense at all.
_MISFITS = (Misfit, ArithmeticError, LookupError, TypeError, ValueError)


def _invalid(op: str, inputs: Sequence[Node | None], misfit: Exception) -> InvalidModel:
    given = ", ".join("-" if node is None else str(node.types[0]) for node in inputs)
    reason = str(misfit) if isinstance(misfit, Misfit) else f"attributes make no sense ({misfit!r})"
    return InvalidModel(f"{op}({given}): {reason}; correct the model or export it again")


def _form(op: str, version: int) -> Form:
    form = onnx_schema.form(op, version)
    if form is None:
        where = f" in opset {version}" if version else ""
        raise UnsupportedOperator(
            f"operator {op} is not known{where}; export the model with standard ONNX operators"
        )
    return form


def _checked(
    form: Form, inputs: tuple[Node | None, ...], attrs: Mapping[str, Any], outputs: int
) -> dict[str, Any]:
    """The attributes with defaults filled in, once everything fits the operator's form."""
    given = len(inputs) - attrs.get(N_CAPTURED, 0)
    if not form.min_inputs <= given <= form.max_inputs:
        raise InvalidModel(
            f"{form.name} takes {form.min_inputs} to {form.max_inputs} inputs and is given "
            f"{given}; correct the model"
        )
    if outputs > form.max_outputs:
        raise InvalidModel(f"{form.name} has no {outputs} results; correct the model")
    complete = dict(form.defaults)
    for name, value in attrs.items():
        kind = form.kinds.get(name)
        if kind is None and name not in (N_CAPTURED, DRAW):
            raise InvalidModel(f"{form.name} has no attribute {name!r}; correct the model")
        convert = _CONVERSIONS.get(kind or "")
        try:
            complete[name] = value if convert is None else convert(value)
        except (TypeError, ValueError) as error:
            raise InvalidModel(
                f"attribute {name!r} of {form.name} must be {kind}; correct the model"
            ) from error
    for name in form.required:
        if name not in complete:
            raise InvalidModel(f"{form.name} needs the attribute {name!r}; correct the model")
    return complete


def _text(value: Any) -> str | bytes:
    if not isinstance(value, (str, bytes)):
        raise TypeError
    return value


# One spelling for equal values, whoever made the node: 1 and 1.0 are the same FLOAT.
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "INT": index,
    "FLOAT": float,
    "STRING": _text,
    "INTS": lambda values: tuple(map(index, values)),
    "FLOATS": lambda values: tuple(map(float, values)),
    "STRINGS": lambda values: tuple(map(_text, values)),
}


def _resolved(op: str, inputs: tuple[Node | None, ...], attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes in one spelling: axes from the front, windows written out, bodies typed."""
    if op in BODY:
        return retype(op, inputs, attrs, rebuild)
    if not inputs or inputs[0] is None or not isinstance(inputs[0].types[0], TensorType):
        return attrs
    shape = inputs[0].types[0].shape
    if op in CONVOLUTIONS or op in POOLS:
        at = 3 if op == "QLinearConv" else 1
        weight = inputs[at] if op in CONVOLUTIONS and len(inputs) > at else None
        return resolve_window(op, shape, None if weight is None else weight.tensor.shape, attrs)
    if shape is None:
        return attrs
    rank = len(shape)
    if op == "Transpose" and "perm" not in attrs:
        attrs["perm"] = tuple(range(rank))[::-1]
    if type(attrs.get("axis")) is int and op in _AXIS_OF_FIRST_INPUT and attrs["axis"] < 0:
        attrs["axis"] = normal_axis(attrs["axis"], rank + (op == "OneHot"))
    return attrs


# Operators whose attribute `axis` counts the axes of the first input (of the result: OneHot).
_AXIS_OF_FIRST_INPUT = frozenset(
    (
        "ArgMax ArgMin Compress Concat Flatten Gather GatherElements Hardmax LayerNormalization "
        "LogSoftmax LpNormalization OneHot RMSNormalization ScatterElements Softmax Split TopK"
    ).split()
)
