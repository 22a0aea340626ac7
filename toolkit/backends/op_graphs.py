"""One layer as an ONNX graph, to be timed alone."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolkit.pruning.layers import LayerOp

OPSET, IR_VERSION = 20, 10
WEIGHT = 0.01  # any ordinary number: zeros and denormals would take another time


def op_graph(op: LayerOp, *, batch: int) -> bytes:
    """A graph of the one layer `op` with constant weights and a fixed input `x` for `batch` images."""
    if op.kind == "conv":
        shape = (batch, op.in_channels, *op.size)
        weights = {"w": (op.out_channels, op.in_channels // op.groups, *op.kernel), "b": (op.out_channels,)}
        node = helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["y"],
            kernel_shape=op.kernel,
            strides=op.stride,
            pads=[*op.padding, *op.padding],
            dilations=op.dilation,
            group=op.groups,
        )
    else:
        shape = (batch * op.size[0], op.in_channels)
        weights = {"w": (op.in_channels, op.out_channels), "b": (op.out_channels,)}
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    return _graph(node, shape, weights)


def empty_graph() -> bytes:
    """A graph that does nothing: what a call costs by itself."""
    return _graph(helper.make_node("Identity", ["x"], ["y"]), (1,), {})


def _graph(node: onnx.NodeProto, shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]) -> bytes:
    constants = [numpy_helper.from_array(np.full(size, WEIGHT, np.float32), name) for name, size in weights.items()]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
