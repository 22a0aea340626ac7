"""A float32 graph becomes one that computes in float16, except the nodes it is told to keep.

Written here because the converter that onnxruntime ships casts the output of every kept node to float16 and back, also
between two kept nodes: a value that was kept because it does not fit would be infinite all the same. Here each value lives in
the type of the node that makes it and is cast, once, only for a consumer of the other kind. Which inputs of an operator may
be float16 is read from the operator's own schema.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from toolkit.backends.ranges import element_types

FLOAT, HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
SUFFIX = {FLOAT: "float", HALF: "half"}
DTYPE_ATTRIBUTES = ("to", "dtype")


def half_inputs(node: onnx.NodeProto, opset: int) -> list[bool] | None:
    """Which inputs of the node may be float16, by its schema; None where the operator has no float16 form."""
    if node.domain not in ("", "ai.onnx") or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return None
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

    def may(kind: str) -> bool:
        return "tensor(float16)" in allowed.get(kind, [kind])

    def floats(kind: str) -> bool:
        return "tensor(float)" in allowed.get(kind, [kind])

    results = [schema.outputs[min(i, len(schema.outputs) - 1)].type_str for i, name in enumerate(node.output) if name]
    operands = [schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in range(len(node.input))]
    if any(floats(kind) and not may(kind) for kind in results):
        return None
    if any(floats(kind) and not may(kind) for kind in operands if kind in allowed):
        return None
    return [may(kind) for kind in operands]


def lift_constants(model: onnx.ModelProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers, so that there is one kind of constant."""
    kept = []
    for node in model.graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """The names that subgraphs of the node mention; those made outside are read from there, in the type they have."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from filter(None, inner.input)
                yield from captured(inner)
            yield from (output.name for output in graph.output)


class HalfPass:
    """Converts `model` (constants lifted, changed in place), with the nodes at the indices `kept` left in float32.

    Inputs and outputs of the graph stay float32. `num_casts` is how many casts that took.
    """

    def __init__(self, model: onnx.ModelProto, kept: set[int], *, opset: int) -> None:
        self.model, self.kept, self.opset = model, kept, opset
        self.types = element_types(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.home = {name: kind for name, kind in self.types.items() if kind == FLOAT}
        self.made: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.num_casts = 0

    def run(self) -> None:
        """Convert."""
        outputs = {output.name for output in self.model.graph.output}
        for index, node in enumerate(list(self.model.graph.node)):
            self._convert(node, index in self.kept, outputs)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        del self.model.graph.value_info[:]
        used = {name for node in self.nodes for name in (*node.input, *captured(node))} | outputs
        left = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in left]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(copies)

    def _convert(self, source: onnx.NodeProto, kept: bool, outputs: set[str]) -> None:
        node = onnx.NodeProto.FromString(source.SerializeToString())
        fits = None if kept else half_inputs(node, self.opset)
        for i, name in enumerate(node.input):
            if name in self.home:
                node.input[i] = self._in(name, HALF if fits is not None and fits[i] else FLOAT)
        after = []
        if fits is not None:
            _retype(node)
            for i, name in enumerate(node.output):
                if self.types.get(name) == FLOAT:
                    self.home[name] = HALF
                    if name in outputs:
                        node.output[i] = f"{name}.half"
                        self.made[name, HALF] = node.output[i]
                        after.append(self._cast(node.output[i], name, FLOAT))
        self.nodes += [node, *after]

    def _in(self, name: str, kind: int) -> str:
        """The value `name` in float32 or float16: itself, or a copy that is made once."""
        if (name, kind) in self.made:
            return self.made[name, kind]
        if self.home[name] == kind:
            return name
        twin = f"{name}.{SUFFIX[kind]}"
        if name in self.constants:
            array = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.model.graph.initializer.append(numpy_helper.from_array(array, twin))
        else:
            self.nodes.append(self._cast(name, twin, kind))
        self.made[name, kind] = twin
        return twin

    def _cast(self, name: str, twin: str, kind: int) -> onnx.NodeProto:
        self.num_casts += 1
        return helper.make_node("Cast", [name], [twin], name=f"{twin}.cast", to=kind)


def _retype(node: onnx.NodeProto) -> None:
    """Attributes that name float32 as the type of a result, or hold a float32 tensor, say float16."""
    for attribute in node.attribute:
        if attribute.name in DTYPE_ATTRIBUTES and attribute.i == FLOAT:
            attribute.i = HALF
        if attribute.HasField("t") and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))
