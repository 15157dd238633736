"""What a model may import and an operator may be given, checked against what ONNX defines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir import onnx_schema
from whitebox.ir.onnx_proto import kind_of, text


def opsets_of(entries: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain → opset; ONNX's own domain is ""."""
    return {
        "" if entry.domain == "ai.onnx" else text(entry.domain): entry.version for entry in entries
    }


def checked_opsets(proto: onnx.ModelProto) -> dict[str, int]:
    """Domain → opset, all of them known to the installed onnx."""
    if proto.ir_version > onnx.IR_VERSION:
        raise InvalidModel(
            f"has IR version {proto.ir_version} and the installed onnx {onnx.__version__} reads "
            f"up to {onnx.IR_VERSION}; upgrade onnx or export an older version"
        )
    opsets = opsets_of(proto.opset_import)
    for domain, version in opsets.items():
        newest = onnx_schema.newest_opset(domain)
        if newest is not None and not 1 <= version <= newest:
            raise InvalidModel(
                f"has opset {version} of domain {domain or 'ai.onnx'!r} and the installed "
                f"onnx {onnx.__version__} knows 1 to {newest}; upgrade onnx or export an older one"
            )
    if not opsets:
        # Before IR version 3 there was one opset.
        if proto.ir_version >= 3:
            raise InvalidModel("imports no opset; export it again")
        opsets[""] = 1
    return opsets


def check_attributes(op: str, opset: int, attributes: Sequence[onnx.AttributeProto]) -> None:
    """Refuse attributes that the operator's form in this opset does not have, or lacks."""
    form = onnx_schema.form(op, opset)
    assert form is not None
    given = {attribute.name: kind_of(attribute) for attribute in attributes}
    for name, kind in given.items():
        expected = form.kinds.get(name)
        if expected != kind:
            what = f"must be {expected}, not {kind}" if expected else "is not known"
            raise InvalidModel(f"attribute {name!r} {what}; correct the model")
    for name in form.required:
        if name not in given:
            raise InvalidModel(f"lacks the attribute {name!r}; correct the model")


def unsupported(domain: str, name: str, opsets: Mapping[str, int]) -> UnsupportedOperator:
    """The error for an operator that ONNX does not define in the opset of its domain."""
    opset = opsets.get(domain)
    where = f"opset {opset} of domain {domain or 'ai.onnx'!r}"
    if opset is None:
        where = f"domain {domain or 'ai.onnx'!r}, which the model does not import"
    return UnsupportedOperator(
        f"operator {name} of {where} is not supported; "
        "export the model with standard ONNX operators"
    )
