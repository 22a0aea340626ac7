"""How large the numbers inside a graph become on real images.

A number format is chosen by what it must hold, and that is measured, not guessed from operator names. Every floating-point
value is reduced to its largest magnitude inside the graph itself, so one session run says it all and no activation is kept.

Legend: N images, C channels, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from toolkit.backends.run_onnx import open_session
from toolkit.errors import InputRefused

BATCH = 8
MAX_BYTES = 1_900_000_000  # what a protobuf message can hold
AVERAGES = ("ReduceMean", "GlobalAveragePool")
SUMS = (*AVERAGES, "ReduceSum", "ReduceL1")
SQUARES = (
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "ReduceL2",
    "ReduceSumSquare",
)


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes over all images: `values` by value name, `inside` by the name of a node's first output.

    `inside` bounds what a reduction adds up before it divides (the sum of magnitudes, or the largest square): a mean of
    small numbers may pass through a large one.
    """

    values: dict[str, float]
    inside: dict[str, float]


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value and initializer whose type is known. Raises `InputRefused` for a graph over 1.9 GB."""
    if model.ByteSize() > MAX_BYTES:
        raise InputRefused(f"the graph is too large to look inside ({model.ByteSize() / 2**30:.1f} GiB; at most 1.8)")
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def measure_ranges(model: onnx.ModelProto, images_NCHW: np.ndarray) -> Ranges:
    """Run `model` on float32 images, unoptimised, and return the largest magnitude of each float32 value.

    Infinity where a value is no number.
    """
    types = element_types(model)
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    floats = [name for name in _computed(model) if types.get(name) == onnx.TensorProto.FLOAT]
    values = {name: _probe(probed, name) for name in floats}
    inside = dict(_probe_inside(probed, model, set(floats)))
    if not values:
        return Ranges({}, {})
    session = open_session(probed.SerializeToString(), threads=1, optimisation="off")
    wanted = [*values.values(), *inside.values()]
    largest = np.zeros(len(wanted))
    for start in range(0, len(images_NCHW), BATCH):
        batch_NCHW = np.ascontiguousarray(images_NCHW[start : start + BATCH], dtype=np.float32)
        found = np.array(session.run(wanted, {session.get_inputs()[0].name: batch_NCHW}), np.float64)
        largest = np.maximum(largest, np.where(np.isnan(found), np.inf, found))
    measured = dict(zip(wanted, largest.tolist(), strict=True))
    return Ranges(
        {name: measured[probe] for name, probe in values.items()}, {name: measured[probe] for name, probe in inside.items()}
    )


def _computed(model: onnx.ModelProto) -> Iterator[str]:
    yield model.graph.input[0].name
    for node in model.graph.node:
        yield from filter(None, node.output)


def _probe(model: onnx.ModelProto, name: str) -> str:
    """Let `model` also return the largest magnitude of the value `name`; returns that output's name."""
    magnitudes, largest = f"{name}.magnitudes", f"{name}.largest"
    model.graph.node.append(helper.make_node("Abs", [name], [magnitudes]))
    model.graph.node.append(helper.make_node("ReduceMax", [magnitudes], [largest], keepdims=0))
    model.graph.output.append(onnx.ValueInfoProto(name=largest))
    return largest


def _probe_inside(probed: onnx.ModelProto, model: onnx.ModelProto, floats: set[str]) -> Iterator[tuple[str, str]]:
    """Let `probed` also return what each reduction of `model` adds up: (first output, name of that output)."""
    for node in model.graph.node:
        if node.input and node.input[0] in floats and node.output[0] in floats and node.op_type in (*SUMS, *SQUARES):
            yield node.output[0], (_probe_sum if node.op_type in SUMS else _probe_square)(probed, node)


def _probe_sum(probed: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The node again, on magnitudes; a mean times the number of values it is of."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    mean = f"{node.output[0]}.added"
    twin.name, twin.input[0], twin.output[0] = mean, f"{node.input[0]}.magnitudes", mean
    probed.graph.node.append(twin)
    if node.op_type not in AVERAGES:
        return _probe(probed, mean)
    total, before, after, ratio, count = (f"{mean}.{part}" for part in ("total", "before", "after", "ratio", "count"))
    probed.graph.node.extend(
        [
            helper.make_node("Size", [node.input[0]], [before]),
            helper.make_node("Size", [mean], [after]),
            helper.make_node("Div", [before, after], [ratio]),
            helper.make_node("Cast", [ratio], [count], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [mean, count], [total]),
        ]
    )
    return _probe(probed, total)


def _probe_square(probed: onnx.ModelProto, node: onnx.NodeProto) -> str:
    magnitudes, square = f"{node.input[0]}.magnitudes", f"{node.output[0]}.square"
    probed.graph.node.append(helper.make_node("Mul", [magnitudes, magnitudes], [square]))
    return _probe(probed, square)


def constant_magnitudes(model: onnx.ModelProto) -> dict[str, float]:
    """The largest magnitude of each float32 initializer."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return {name: float(np.abs(array).max()) if array.size else 0.0 for name, array in arrays.items()}
