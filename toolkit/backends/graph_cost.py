"""What a graph costs, counted from the graph alone, for models of which there is no torch module.

Counted as for modules: a multiply-accumulate for each product of a convolution or matrix product, biases and element-wise
work left out; a parameter for each trained value, the running statistics of batch normalisation left out. Where a node hides
its products (another domain's operator, a loop) the MACs are unknown rather than too few.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

from toolkit.backends.graph_files import read_graph

COUNTED = ("Conv", "Gemm", "MatMul")
HIDING = {
    *("If", "Loop", "Scan", "Einsum", "ConvTranspose", "DeformConv", "LSTM", "GRU", "RNN", "Attention"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
}
WEIGHT_TYPES = {
    *(onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE),
    *(onnx.TensorProto.INT8, onnx.TensorProto.UINT8),
}
STATISTICS = slice(3, 5)  # the inputs of BatchNormalization that hold its running mean and variance

Shapes = Mapping[str, tuple[int, ...]]


def graph_parameters(path: Path) -> int | None:
    """The number of trained values in the graph at `path`, its initializers and constants; None where a layer's weights are
    made by other nodes when it runs. Raises as `read_graph` does.
    """
    model = read_graph(path)
    made = {node.output[0] for node in model.graph.node if node.op_type in ("ConstantOfShape", "RandomNormal", "RandomUniform")}
    if any(name in made for node in model.graph.node if node.op_type in COUNTED for name in node.input[1:]):
        return None
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[STATISTICS]}
    return sum(
        math.prod(tensor.dims)
        for name, tensor in _constants(model.graph).items()
        if name not in statistics and tensor.data_type in WEIGHT_TYPES and len(tensor.dims) > 0
    )


def graph_macs(path: Path, *, image: tuple[int, ...]) -> int | None:
    """Multiply-accumulates of one image through the graph at `path`, whose first input then has the shape `image` (with the
    batch); None where they cannot be counted from it. Raises as `read_graph` does.
    """
    model = read_graph(path)
    if model.functions or any(node.domain not in ("", "ai.onnx") or node.op_type in HIDING for node in model.graph.node):
        return None
    shapes = _shapes(model, image)
    counts = [_node_macs(node, shapes) for node in model.graph.node if node.op_type in COUNTED]
    known = [count for count in counts if count is not None]
    return round(sum(known) / image[0]) if len(known) == len(counts) else None


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def _shapes(model: onnx.ModelProto, image: tuple[int, ...]) -> Shapes:
    """The shapes onnx can infer, by tensor name; what it cannot infer is absent."""
    held = _constants(model.graph)
    first = next(value for value in model.graph.input if value.name not in held)
    for dim, size in zip(first.type.tensor_type.shape.dim, image, strict=True):
        dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]  # noted for another batch
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    shapes = {name: tuple(tensor.dims) for name, tensor in held.items()}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Each output value of a convolution sums one filter's products, of a matrix product one row's."""
    made, left, right = shapes.get(node.output[0]), shapes.get(node.input[0]), shapes.get(node.input[1])
    if made is None or left is None or right is None:
        return None
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(right[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(made) * left[0 if node.op_type == "Gemm" and transposed else -1]
