"""The graph of an ONNX model as nodes: scopes, bodies, functions.

Enter: a GraphProto and what its names may refer to. Leave: a Graph. Names are resolved here and
nowhere else: afterwards a node knows its inputs, a body lists what it captures, and names are only
for messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx

from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir import onnx_contrib, onnx_schema, ops
from whitebox.ir.graph import INPUT, Graph, Model, Node, Tensor, constant, input_node, output
from whitebox.ir.onnx_checks import check_attributes, opsets_of, unsupported
from whitebox.ir.onnx_proto import plain_attribute, text, type_of_proto
from whitebox.ir.onnx_scope import Scope, in_order, label
from whitebox.ir.onnx_tensors import TensorReader
from whitebox.ir.onnx_upgrade import upgrade
from whitebox.ir.shapes.control import BODY, formal_types
from whitebox.ir.shapes.rule import Misfit
from whitebox.ir.types import Type

FunctionKey: TypeAlias = "tuple[str, str, str]"  # domain, name, overload
Signature: TypeAlias = "list[tuple[str, Node]]"

_OWN_DOMAIN = "whitebox"

# Functions that call functions can unfold to any size, and a sparse tensor can claim any shape.
_MAX_UNFOLDED_NODES = 100_000
_MAX_CALL_DEPTH = 100
_MAX_DENSE_BYTES = 1 << 31


@dataclass
class Importer:
    """One model being read.

    `identity` tells this file from others, so that no random operator merges with another's.
    `own_domain` says whether operators of the domain "whitebox" are welcome.
    """

    functions: Mapping[FunctionKey, onnx.FunctionProto]
    reader: TensorReader
    identity: Callable[[], str]
    own_domain: bool = False
    names: dict[Node, str] = field(default_factory=dict)
    _calls: list[FunctionKey] = field(default_factory=list)
    _draws: int = 0
    _unfolded: int = 0

    def graph(
        self,
        name: str,
        proto: onnx.GraphProto,
        opsets: Mapping[str, int],
        initializers: Sequence[Tensor] | None = None,
    ) -> Graph:
        """The whole graph, as the model `name`; `initializers` are its own, if read already."""
        scope = Scope(opsets)
        inputs = self._declare(proto, scope, initializers=initializers)
        outputs = self._fill(proto, scope)
        if not outputs:
            raise InvalidModel("the graph has no outputs; correct the model")
        return Graph([Model(name, tuple(inputs), tuple(outputs))], self.names)

    def _declare(
        self,
        proto: onnx.GraphProto,
        scope: Scope,
        types: Sequence[Type | None] = (),
        initializers: Sequence[Tensor] | None = None,
    ) -> Signature:
        """Define initializers and inputs; an input with an initializer is a constant.

        `types` are those a body is called with; beyond them the declared ones count.
        """
        if initializers is None:
            initializers = self.reader.tensors(proto.initializer)
        for initializer, tensor in zip(proto.initializer, initializers, strict=True):
            scope.define(initializer.name, constant(tensor))
        for sparse in proto.sparse_initializer:
            scope.define(sparse.values.name, constant(self._dense(sparse)))
        initialized = set(scope.values)
        inputs: Signature = []
        for info in proto.input:
            if info.name in initialized:
                continue
            given = types[len(inputs)] if len(inputs) < len(types) else None
            try:
                type = given or type_of_proto(info.type)
            except InvalidModel as error:
                raise InvalidModel(f"input {info.name!r}: {error}") from error
            node = input_node(len(inputs), type)
            scope.define(info.name, node)
            inputs.append((text(info.name), node))
        return inputs

    def _fill(self, proto: onnx.GraphProto, scope: Scope) -> Signature:
        """Define the results of every node; gives the graph's outputs."""
        for node in in_order(proto.node, scope):
            try:
                results = self._results(node, scope)
            except InvalidModel as error:
                # In a body or function the innermost node is the one to look at.
                if str(error).startswith("node "):
                    raise
                raise type(error)(f"node {label(node)}: {error}") from error
            for name, result in zip(node.output, results, strict=False):
                if not name:
                    continue
                scope.define(name, result)
                if result is not None and not result.is_constant and result.op != INPUT:
                    self.names.setdefault(result, text(node.name or name))
        outputs: Signature = []
        for info in proto.output:
            found = scope.find(info.name) if info.name in scope else None
            if found is None:
                raise InvalidModel(f"nothing produces the output {info.name!r}; correct the model")
            outputs.append((text(info.name), found))
        return outputs

    def _results(self, proto: onnx.NodeProto, scope: Scope) -> Sequence[Node | None]:
        inputs = [scope.find(name) if name else None for name in proto.input]
        key = (proto.domain, proto.op_type, proto.overload)
        if key in self.functions:
            return self._call(key, proto, inputs, scope)
        domain = "" if proto.domain == "ai.onnx" else text(proto.domain)
        op = onnx_schema.join_op(domain, text(proto.op_type))
        n_outputs = len(proto.output)
        while n_outputs > 1 and not proto.output[n_outputs - 1]:
            n_outputs -= 1
        attributes = list(scope.resolved(proto.attribute))
        if domain == _OWN_DOMAIN and self.own_domain:
            attrs = self._attributes(op, attributes, inputs, scope)
            node = ops.make(op, inputs, attrs, outputs=n_outputs)
            return [output(node, index) for index in range(n_outputs)]
        if domain == onnx_contrib.DOMAIN and proto.op_type in onnx_contrib.CONTRIB:
            attrs = self._attributes(op, attributes, inputs, scope)
            return (onnx_contrib.expand(proto.op_type, inputs, attrs),)
        opset = scope.opsets.get(domain, 0)
        if not opset or onnx_schema.form(op, opset) is None:
            raise unsupported(domain, text(proto.op_type), scope.opsets)
        check_attributes(op, opset, attributes)
        if op == "Scan" and opset < 9:
            raise UnsupportedOperator(
                "Scan of opset 8 scans batches; export the model in opset 9 or newer"
            )
        if op == "Constant":
            return (constant(self._constant(attributes)),)
        attrs = self._attributes(op, attributes, inputs, scope)
        if ops.traits(op).random:
            self._draws += 1
            attrs[ops.DRAW] = f"{self.identity()}/{self._draws}"
        return upgrade(op, opset, inputs, attrs, n_outputs)

    def _attributes(
        self,
        op: str,
        attributes: Sequence[onnx.AttributeProto],
        inputs: list[Node | None],
        scope: Scope,
    ) -> dict[str, Any]:
        """Plain attributes, bodies as Graphs; what bodies capture is appended to `inputs`."""
        plain: dict[str, Any] = {}
        bodies: dict[str, onnx.GraphProto] = {}
        for proto in attributes:
            if proto.type == onnx.AttributeProto.GRAPH:
                bodies[proto.name] = proto.g
            elif proto.type == onnx.AttributeProto.TENSOR:
                plain[proto.name] = Tensor.of(self.reader.array(proto.t))
            else:
                plain[proto.name] = plain_attribute(proto)
        if bodies and op not in BODY:
            raise UnsupportedOperator(
                f"{op} with a graph as {next(iter(bodies))!r} is not supported; "
                "export the model with standard ONNX operators"
            )
        if bodies:
            captured = self._bodies(op, bodies, plain, inputs, scope)
            inputs += captured
            if captured:
                plain[ops.N_CAPTURED] = len(captured)
        return plain

    def _bodies(
        self,
        op: str,
        bodies: Mapping[str, onnx.GraphProto],
        attrs: dict[str, Any],
        inputs: Sequence[Node | None],
        scope: Scope,
    ) -> list[Node | None]:
        """Read the bodies of one node into `attrs`; gives the outside nodes that they capture."""
        try:
            types = formal_types(
                op, [None if node is None else node.types[0] for node in inputs], attrs
            )
        except Misfit as misfit:
            raise InvalidModel(f"{misfit}; correct the model") from misfit
        captures: dict[str, Node] = {}
        read: dict[str, tuple[Signature, Signature]] = {}
        for name, proto in sorted(bodies.items()):
            inner = Scope(scope.opsets, scope.attrs, scope, captures, len(types))
            formal = self._declare(proto, inner, types)
            if len(formal) != len(types):
                raise InvalidModel(
                    f"{name} has {len(formal)} inputs and is called with {len(types)}; "
                    "correct the model"
                )
            read[name] = formal, self._fill(proto, inner)
        for name, (formal, results) in read.items():
            signature = (*formal, *captures.items())
            attrs[name] = Graph([Model(name, signature, tuple(results))])
        return [scope.find(name) for name in captures]

    def _call(
        self,
        key: FunctionKey,
        proto: onnx.NodeProto,
        inputs: Sequence[Node | None],
        scope: Scope,
    ) -> Sequence[Node | None]:
        """A model-local function, its nodes in the place of the call."""
        function = self.functions[key]
        self._unfolded += len(function.node)
        if self._unfolded > _MAX_UNFOLDED_NODES or len(self._calls) > _MAX_CALL_DEPTH:
            raise InvalidModel(
                f"functions unfold to more than {_MAX_UNFOLDED_NODES} nodes, or are nested more "
                f"than {_MAX_CALL_DEPTH} deep; split the model"
            )
        if key in self._calls:
            raise InvalidModel(f"function {function.name!r} calls itself; correct the model")
        if len(inputs) > len(function.input):
            raise InvalidModel(
                f"function {function.name!r} takes {len(function.input)} inputs and is given "
                f"{len(inputs)}; correct the model"
            )
        attrs = {default.name: default for default in function.attribute_proto}
        attrs.update((given.name, given) for given in scope.resolved(proto.attribute))
        inner = Scope({**scope.opsets, **opsets_of(function.opset_import)}, attrs)
        padded = [*inputs, *[None] * (len(function.input) - len(inputs))]
        for name, given in zip(function.input, padded, strict=True):
            inner.define(name, given)
        graph = onnx.GraphProto(node=function.node)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
        self._calls.append(key)
        try:
            return [node for _, node in self._fill(graph, inner)]
        finally:
            self._calls.pop()

    def _constant(self, attributes: Sequence[onnx.AttributeProto]) -> Tensor:
        if len(attributes) != 1:
            raise InvalidModel("needs exactly one attribute; correct the model")
        attribute = attributes[0]
        match attribute.name:
            case "value":
                return self.reader.tensors([attribute.t])[0]
            case "sparse_value":
                return self._dense(attribute.sparse_tensor)
            case "value_float" | "value_floats":
                return Tensor.of(np.asarray(plain_attribute(attribute), np.float32))
            case "value_int" | "value_ints":
                return Tensor.of(np.asarray(plain_attribute(attribute), np.int64))
            case _:
                return Tensor.of(np.asarray(plain_attribute(attribute), object))

    def _dense(self, sparse: onnx.SparseTensorProto) -> Tensor:
        """A sparse tensor with its zeros."""
        values, indices = self.reader.array(sparse.values), self.reader.array(sparse.indices)
        try:
            if math.prod(sparse.dims) * values.itemsize > _MAX_DENSE_BYTES:
                raise ValueError(f"its shape {list(sparse.dims)} is too large")
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            if indices.ndim == 2:
                dense[tuple(indices.T)] = values
            else:
                dense.reshape(-1)[indices] = values
        except (IndexError, ValueError) as error:
            raise InvalidModel(
                f"sparse tensor {sparse.values.name!r}: {error}; correct the model"
            ) from error
        return Tensor.of(dense)
