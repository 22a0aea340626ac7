"""The float16 variant of an exported graph: half the size, and fast where the processor or card computes in float16.

float16 holds magnitudes up to 65,504 and, at full accuracy, down to 6.1e-5. What leaves that range does so on images, so it is
measured on them; the nodes it touches stay in float32 and are named with the reason.

Legend: N images, C channels, H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from toolkit.backends.describe import module_path
from toolkit.backends.half_pass import FLOAT, HALF, SUFFIX, HalfPass, captured, half_inputs, lift_constants
from toolkit.backends.ranges import Ranges, constant_magnitudes, element_types, measure_ranges
from toolkit.backends.write import opset_of, save_graph
from toolkit.errors import InputRefused, UsageError

LARGEST, SMALLEST_NORMAL = 65504.0, 2.0**-14


@dataclass(frozen=True)
class HalfRange:
    """When a node stays in float32.

    `headroom`: what float16 holds (65,504) over the largest magnitude allowed on the measured images, because those of
    tomorrow may be larger. A tensor whose largest magnitude is not zero and below 6.1e-5 would keep few of its bits.
    `num_images`: training images measured, besides four of extremes (black, white, grey, checkerboard).
    """

    headroom: float = 2.0
    num_images: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.headroom <= 1000:
            raise UsageError(f"fp16: headroom is {self.headroom}; give 1 to 1000 (2 keeps nodes that reach 32,752 in float32).")
        if self.num_images < 1:
            raise UsageError(f"fp16: num_images is {self.num_images}; ranges need at least 1 image.")


@dataclass(frozen=True)
class HalfFacts:
    """What was written: `num_nodes` of the float32 graph with numbers in them, `kept` (node, module, reason), `num_casts`."""

    num_nodes: int
    kept: tuple[dict[str, str], ...]
    num_casts: int


def write_half(source: Path, path: Path, images_NCHW: np.ndarray, *, limits: HalfRange | None = None) -> HalfFacts:
    """Write the float32 graph `source` to `path` in float16, its inputs and outputs still float32.

    Ranges are measured on `images_NCHW` (float32 pixels). Raises `InputRefused` where nothing can become float16.
    """
    model = onnx.load(source)
    lift_constants(model)
    ranges = measure_ranges(model, images_NCHW)
    reasons = risky_nodes(model, ranges, limits or HalfRange())
    types = element_types(model)
    numeric = [i for i, node in enumerate(model.graph.node) if FLOAT in [types.get(name) for name in node.output]]
    if set(numeric) <= set(reasons):
        raise InputRefused("no node can compute in float16: " + "; ".join(sorted(set(reasons.values()))[:3]))
    kept = tuple(
        {"node": node.name or f"{node.op_type} {i}", "op_type": node.op_type, "module": module_path(node), "reason": reasons[i]}
        for i, node in enumerate(model.graph.node)
        if i in reasons and i in numeric
    )
    conversion = HalfPass(model, set(reasons), opset=opset_of(model))
    conversion.run()
    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | {"precision": "fp16"})
    save_graph(model, path)
    return HalfFacts(len(numeric), kept, conversion.num_casts)


def half_values(path: Path) -> set[str]:
    """The values of the float32 graph that the float16 graph at `path`, made from it, holds in float16."""
    model = onnx.load(path)
    types = element_types(model)
    computed = (name for node in model.graph.node for name in node.output)
    return {name.removesuffix(f".{SUFFIX[HALF]}") for name in computed if types.get(name) == HALF}


def risky_nodes(model: onnx.ModelProto, ranges: Ranges, limits: HalfRange) -> dict[int, str]:
    """The nodes that must stay in float32, by index, and why."""
    magnitudes = ranges.values | constant_magnitudes(model)
    types = element_types(model)
    opset = opset_of(model)
    borrowed = {name for node in model.graph.node for name in captured(node)}
    multiplied = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    reasons: dict[int, str] = {}
    for i, node in enumerate(model.graph.node):
        reason = (
            _form(node, opset, types, borrowed)
            or _crash(node, multiplied)
            or _size(node, magnitudes, ranges.inside, LARGEST / limits.headroom)
        )
        if reason:
            reasons[i] = reason
    return reasons


def _form(node: onnx.NodeProto, opset: int, types: dict[str, int], borrowed: set[str]) -> str:
    """What in the operator itself forbids float16."""
    if any(name not in types for name in (*filter(None, node.input), *filter(None, node.output))):
        return "the type of its values is unknown"
    if half_inputs(node, opset) is None:
        return f"{node.op_type} has no float16 form"
    if borrowed & set(node.output):
        return "a subgraph reads its output"
    kinds = [types[name] for name in (*node.input, *node.output) if name]
    if node.op_type == "Cast" and FLOAT in kinds and any(kind != FLOAT for kind in kinds):
        return "it counts: float16 is exact up to 2,048 only"
    return ""


def _crash(node: onnx.NodeProto, multiplied: set[str]) -> str:
    """onnxruntime 1.32 dies, and the process with it, when it optimises a float16 Transpose into a MatMul on the CPU."""
    return "onnxruntime crashes on it before a MatMul" if node.op_type == "Transpose" and node.output[0] in multiplied else ""


def _size(node: onnx.NodeProto, magnitudes: dict[str, float], inside: dict[str, float], most: float) -> str:
    """What in its numbers forbids float16."""
    for name in (*node.input, *node.output):
        magnitude = magnitudes.get(name, 0.0)
        if not magnitude <= most:
            return f"'{name}' reaches {magnitude:.3g}"
        if 0 < magnitude < SMALLEST_NORMAL:
            return f"'{name}' is at most {magnitude:.3g}"
    added = inside.get(node.output[0], 0.0) if node.output else 0.0
    return "" if added <= most else f"it adds up to {added:.3g} inside"
