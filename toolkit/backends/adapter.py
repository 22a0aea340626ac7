"""An adapter around a graph: callers of the old model's graph call the new one, unchanged.

In front stand the casts, transposes and resizing that turn what the callers send into what the new graph takes; behind it, what
turns its answer into theirs: the labels by name, logits or probabilities, the old name, type and shape. The new graph lies
between them as it is, its tensors renamed so that no name is taken twice.

Legend: N images, C channels, H height, W width, K labels.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.compose import add_prefix

from toolkit.backends.describe import describe_graph
from toolkit.backends.resize_graph import Builder, resized_pixels
from toolkit.bundle import Manifest, Preprocessing, TensorSpec

PREFIX = "adapter/"
SUCCESSOR = "successor/"
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
}
LEAST_OPSET = 13  # below it Unsqueeze and ReduceSum take their axes as attributes


@dataclass
class _Adapter:
    """The nodes of the adapter, and what each does in words."""

    builder: Builder = field(default_factory=lambda: Builder(PREFIX))
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Labels:
    """What the new graph's outputs mean (`held`), and what the callers read (`wanted`)."""

    held: tuple[str, ...]
    wanted: tuple[str, ...]

    @property
    def columns(self) -> list[int]:
        return columns(self.held, self.wanted)

    def words(self) -> list[str]:
        left_out = [label for label in self.held if label not in self.wanted]
        ordered = [label for label in self.held if label in self.wanted]
        moved = [f"labels put in order by name: {', '.join(self.wanted)}"] if ordered != list(self.wanted) else []
        return moved + ([f"labels left out: {', '.join(left_out)}"] if left_out else [])


def compose_adapter(model: onnx.ModelProto, *, held: Manifest, wanted: Manifest) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`model`, which keeps the contract of `held`, as a graph that keeps that of `wanted`; and what the adapter does, in words.

    Both contracts take one batch of images and return class scores first; every label of `wanted` is one of `held`, of which
    the others are left out. Whether that is so is for the caller to know (`toolkit.checks.adaptation_refusals`).
    """
    inner = add_prefix(model, SUCCESSOR)
    front, back = _Adapter(), _Adapter(Builder(f"{PREFIX}answer/"))
    old, new = wanted.contract.inputs[0], held.contract.inputs[0]
    values = _input(front, old, new, wanted.preprocessing, held.preprocessing)
    scores, given = wanted.contract.outputs[0], held.contract.outputs[0]
    answer = _output(back, SUCCESSOR + given.name, scores, given, _Labels(held.labels, wanted.labels))
    nodes = [
        *front.builder.nodes,
        helper.make_node("Identity", [values], [SUCCESSOR + new.name], name=f"{PREFIX}in"),
        *inner.graph.node,
        *back.builder.nodes,
        helper.make_node("Identity", [answer], [scores.name], name=f"{PREFIX}out"),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [_declared(old)],
        [_declared(scores)],
        [*inner.graph.initializer, *front.builder.constants, *back.builder.constants],
        value_info=inner.graph.value_info,
        sparse_initializer=inner.graph.sparse_initializer,
    )
    composed = onnx.ModelProto()
    composed.CopyFrom(inner)
    composed.graph.CopyFrom(graph)
    describe_graph(composed, preprocessing=wanted.preprocessing, labels=wanted.labels, metadata={"precision": "fp32"})
    return composed, (*front.words, *back.words)


def columns(held: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """The place among the labels `held` of each of `wanted`, by name."""
    return [held.index(label) for label in wanted]


def resizing_part(taken: TensorSpec, given: Preprocessing, wanted: Preprocessing) -> bytes | None:
    """The adapter's resizing alone, float32 pixels (N, C, H, W) in and out, of images in the spec `given`; None without one.

    What it computes is held against training's resizing, and what the rest computes against a reference behind it.
    """
    if not _resizes(taken, given, wanted):
        return None
    part = _Adapter()
    name = _resized(part, "pixels", _sizes(taken), wanted)
    shape = ["batch", given.num_channels, *_sizes(taken)]
    graph = helper.make_graph(
        part.builder.nodes,
        "resizing",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        part.builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString(deterministic=True)


def _input(a: _Adapter, old: TensorSpec, new: TensorSpec, given: Preprocessing, wanted: Preprocessing) -> str:
    """From the old input to what the new graph takes; returns the name of the last tensor."""
    b, name = a.builder, old.name
    _name_differences(a, old, new)
    resizes = _resizes(old, given, wanted)
    rescales = old.meaning != new.meaning or (old.meaning == "normalised" and _scaling(given) != _scaling(wanted))
    if not resizes and not rescales and (old.dtype, old.layout) == (new.dtype, new.layout):
        return name
    if old.dtype != "float32":
        name = b.op("Cast", name, to=TensorProto.FLOAT)
    if old.layout == "NHWC":
        name = b.op("Transpose", name, perm=[0, 3, 1, 2])
    if old.meaning == "normalised" and (resizes or rescales):
        mean_C11, std_C11 = _scaling(given)
        name = b.op("Add", b.op("Mul", name, b.constant(std_C11, np.float32)), b.constant(mean_C11, np.float32))
        name = b.op("Round", name) if old.dtype == "float16" else name  # too coarse for more than whole grey levels
        a.words.append("normalised values back to pixels 0..255")
    if resizes:
        name = _resized(a, name, _sizes(old), wanted)
        before = "×".join(str(side) for side in _sizes(old))
        a.words.append(f"resized from {before} to {wanted.size_px[0]}×{wanted.size_px[1]} px ({wanted.interpolation})")
    if new.meaning == "normalised" and (resizes or rescales):
        mean_C11, std_C11 = _scaling(wanted)
        name = b.op("Mul", b.op("Sub", name, b.constant(mean_C11, np.float32)), b.constant(1 / np.array(std_C11), np.float32))
        a.words.append("pixels normalised as the successor takes them")
    if new.layout == "NHWC":
        name = b.op("Transpose", name, perm=[0, 2, 3, 1])
    if new.dtype == "uint8":
        name = b.op("Clip", b.op("Round", name), b.constant(0.0, np.float32), b.constant(255.0, np.float32))
    return name if new.dtype == "float32" else b.op("Cast", name, to=ONNX_TYPES[new.dtype])


def _output(a: _Adapter, name: str, old: TensorSpec, new: TensorSpec, labels: _Labels) -> str:
    """From the new graph's answer `name` to the old output; returns the name of the last tensor."""
    b, meanings = a.builder, (new.meaning, old.meaning)
    if new.dtype != "float32":
        name = b.op("Cast", name, to=TensorProto.FLOAT)
    if len(new.dims) > 2:
        name = b.op("Flatten", name, axis=1)
    if meanings == ("probabilities", "logits"):
        name = b.op("Log", b.op("Max", name, b.constant(float(np.finfo(np.float32).tiny), np.float32)))
        a.words.append("probabilities to logits (logarithm)")
    if labels.held != labels.wanted:
        name = b.op("Gather", name, b.constant(labels.columns, np.int64), axis=1)
        a.words += labels.words()
        if meanings == ("probabilities", "probabilities"):
            name = b.op("Div", name, b.op("ReduceSum", name, b.constant([1], np.int64), keepdims=1))
    if meanings == ("logits", "probabilities"):
        name = b.op("Softmax", name, axis=1)
        a.words.append("logits to probabilities (softmax)")
    if len(old.dims) > 2:
        name = b.op("Unsqueeze", name, b.constant([2, 3], np.int64))
    _name_differences(a, old, new)
    return name if old.dtype == "float32" else b.op("Cast", name, to=ONNX_TYPES[old.dtype])


def _name_differences(a: _Adapter, old: TensorSpec, new: TensorSpec) -> None:
    """Say in words where name, type and form of a tensor differ."""
    kind = "output" if old.layout.startswith("NK") else "input"
    if old.name != new.name:
        a.words.append(f"{kind} '{old.name}' in place of '{new.name}'")
    if kind == "input" and old.dims[0] != new.dims[0] and isinstance(old.dims[0], int):
        a.words.append(f"batch fixed at {old.dims[0]}")
    if old.dtype != new.dtype:
        a.words.append(f"{kind} {old.dtype} in place of {new.dtype}")
    if old.layout != new.layout:
        a.words.append(f"{kind} {old.layout} in place of {new.layout}")


def _resized(a: _Adapter, pixels_NCHW: str, source: tuple[int | str, int | str], wanted: Preprocessing) -> str:
    """Whole grey levels at the size `wanted`: resizing rounds, so values a hair below a half must not enter it."""
    b = a.builder
    levels = b.op("Clip", b.op("Round", pixels_NCHW), b.constant(0.0, np.float32), b.constant(255.0, np.float32))
    shape = b.op("Shape", levels)
    sides = [
        b.constant(side, np.int64) if isinstance(side, int) else b.op("Gather", shape, b.constant(axis, np.int64))
        for axis, side in zip((2, 3), source, strict=True)
    ]
    targets = [b.constant(side, np.int64) for side in wanted.size_px]
    return resized_pixels(b, levels, sources=sides, targets=targets, preprocessing=wanted)


def _resizes(taken: TensorSpec, given: Preprocessing, wanted: Preprocessing) -> bool:
    free = not all(isinstance(side, int) for side in _sizes(taken))
    return free or tuple(given.size_px) != tuple(wanted.size_px)


def _sizes(taken: TensorSpec) -> tuple[int | str, int | str]:
    """Height and width of an image input, each a size or, where it is free, a name."""
    dims = dict(zip(taken.layout, taken.dims, strict=True))
    return dims["H"], dims["W"]


def _scaling(preprocessing: Preprocessing) -> tuple[list, list]:
    """Mean and standard deviation in grey levels, (C, 1, 1)."""
    low, high = preprocessing.value_range
    levels = 255.0 / (high - low)
    return [[[(mean - low) * levels]] for mean in preprocessing.mean], [[[std * levels]] for std in preprocessing.std]


def _declared(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.dtype], list(spec.dims))
