"""Resizing inside a graph, as PIL resizes: two matrix products whose weights are computed from the image's size.

ONNX's own Resize has no Lanczos, another cubic than PIL's and other roundings. A separable filter is a matrix product along
each side, and the matrix follows from the two sizes, so every filter that a preprocessing may name becomes the same few
operators. PIL rounds to whole grey levels after each side; so does this, width first. PIL takes the height first for some
sizes (which ones depends on its version); the two orders differ by a level or two, and the export stage measures by how much.
`antialias: false` is torch's interpolation, which rounds once.

Legend: H, W the image's size, O a target side, I an image side.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolkit.bundle import Preprocessing

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
TORCH_CUBIC, PIL_CUBIC = -0.75, -0.5


class Builder:
    """Collects the nodes and constants of a graph whose names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: float | list[int] | np.ndarray, dtype: type = np.float64) -> str:
        """The name of a constant."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str | float, name: str = "", **attributes: Any) -> str:
        """Add an operator; numbers become float64 constants. Returns the name of its output."""
        names = [entry if isinstance(entry, str) else self.constant(entry) for entry in inputs]
        output = name or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], name=f"{self.prefix}{len(self.nodes)}", **attributes))
        return output

    def whole(self, value: str) -> str:
        """`value` as int64."""
        return self.op("Cast", value, to=TensorProto.INT64)

    def real(self, value: str) -> str:
        """`value` as float64."""
        return self.op("Cast", value, to=TensorProto.DOUBLE)

    def count(self, end: str) -> str:
        """0, 1, ... below the int64 scalar `end`, as float64."""
        return self.real(self.op("Range", self.constant(0, np.int64), end, self.constant(1, np.int64)))


def resized_pixels(
    b: Builder,
    pixels_NCHW: str,
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    preprocessing: Preprocessing,
    name: str = "",
) -> str:
    """Pixels resized to `targets`, of which the middle at the size of `preprocessing` stays: float32, in whole grey levels.

    `sources` and `targets` name int64 scalars, height first.
    """
    weights = []
    for source, target, size in zip(sources, targets, preprocessing.size_px, strict=True):
        spare = b.op("Div", b.real(b.op("Sub", target, b.constant(size, np.int64))), 2.0)
        weights.append(
            resizing_weights(
                b,
                source=source,
                target=target,
                offset=b.whole(b.op("Round", spare)),
                size=size,
                interpolation=preprocessing.interpolation,
                antialias=preprocessing.antialias,
            )
        )
    down_OH, across_OW = weights
    across = b.op("MatMul", pixels_NCHW, b.op("Transpose", across_OW, perm=[1, 0]))
    if preprocessing.antialias or preprocessing.interpolation == "nearest":
        across = _levels(b, b.op("Floor", b.op("Add", across, b.constant(0.5, np.float32))))
        down = b.op("Floor", b.op("Add", b.op("MatMul", down_OH, across), b.constant(0.5, np.float32)))
    else:
        down = b.op("Round", b.op("MatMul", down_OH, across))
    return _levels(b, down, name=name)


def _levels(b: Builder, values: str, name: str = "") -> str:
    return b.op("Clip", values, b.constant(0.0, np.float32), b.constant(255.0, np.float32), name=name)


def resizing_weights(
    b: Builder, *, source: str, target: str, offset: str, size: int, interpolation: str, antialias: bool
) -> str:
    """The float32 matrix (`size`, I) that resizes a side of `source` pixels to `target` and keeps `size` from `offset` on.

    `source`, `target` and `offset` name int64 scalars.
    """
    scale = b.op("Div", b.real(source), b.real(target))
    if interpolation == "nearest":
        return _nearest(b, scale, source=source, target=target, offset=offset, size=size)
    places_O1 = b.op("Add", b.constant(np.arange(size)[:, None]), b.op("Add", b.real(offset), 0.5))
    pixels_1I = b.op("Unsqueeze", b.count(source), b.constant([0], np.int64))
    centres_O1 = b.op("Mul", places_O1, scale)
    if not antialias:
        return b.op("Cast", _torch_weights(b, centres_O1, pixels_1I, source, interpolation), to=TensorProto.FLOAT)
    widened = b.op("Max", scale, b.constant(1.0))
    support = b.op("Mul", widened, SUPPORT[interpolation])
    first_O1 = b.op("Floor", b.op("Max", b.op("Add", b.op("Sub", centres_O1, support), 0.5), b.constant(0.0)))
    last_O1 = b.op("Floor", b.op("Add", b.op("Add", centres_O1, support), 0.5))
    inside = b.op("And", b.op("GreaterOrEqual", pixels_1I, first_O1), b.op("Less", pixels_1I, last_O1))
    distance_OI = b.op("Div", b.op("Add", b.op("Sub", pixels_1I, centres_O1), 0.5), widened)
    values_OI = b.op("Mul", FILTERS[interpolation](b, distance_OI), b.real(inside))
    sums_O1 = b.op("ReduceSum", values_OI, b.constant([1], np.int64), keepdims=1)
    return b.op("Cast", b.op("Div", values_OI, sums_O1), to=TensorProto.FLOAT)


def _nearest(b: Builder, scale: str, *, source: str, target: str, offset: str, size: int) -> str:
    """The pixel under each target's centre; the centres are summed up one by one as PIL does, rounding included."""
    rest = b.op("Unsqueeze", b.op("Sub", target, b.constant(1, np.int64)), b.constant([0], np.int64))
    first = b.op("Unsqueeze", b.op("Mul", scale, 0.5), b.constant([0], np.int64))
    steps = b.op("Concat", first, b.op("Expand", scale, rest), axis=0)
    centres = b.op("CumSum", steps, b.constant(0, np.int64))
    places = b.op("Add", b.constant(np.arange(size), np.int64), offset)
    chosen_O1 = b.op("Unsqueeze", b.op("Floor", b.op("Gather", centres, places)), b.constant([1], np.int64))
    pixels_1I = b.op("Unsqueeze", b.count(source), b.constant([0], np.int64))
    return b.op("Cast", b.op("Equal", chosen_O1, pixels_1I), to=TensorProto.FLOAT)


def _triangle(b: Builder, x: str) -> str:
    return b.op("Max", b.op("Sub", 1.0, b.op("Abs", x)), b.constant(0.0))


def _cubic(b: Builder, x: str, a: float = PIL_CUBIC) -> str:
    """Keys's cubic (IEEE ASSP 1981) with the slope `a`."""
    away = b.op("Abs", x)
    square = b.op("Mul", away, away)
    cube = b.op("Mul", square, away)
    near = b.op("Add", b.op("Sub", b.op("Mul", cube, a + 2), b.op("Mul", square, a + 3)), 1.0)
    far = b.op(
        "Sub", b.op("Sub", b.op("Mul", cube, a), b.op("Mul", square, 5 * a)), b.op("Sub", 4 * a, b.op("Mul", away, 8 * a))
    )
    beyond = b.op("Where", b.op("Less", away, 2.0), far, b.constant(0.0))
    return b.op("Where", b.op("Less", away, 1.0), near, beyond)


def _lanczos(b: Builder, x: str) -> str:
    inside = b.op("And", b.op("GreaterOrEqual", x, -3.0), b.op("Less", x, 3.0))
    product = b.op("Mul", _sinc(b, x), _sinc(b, b.op("Div", x, 3.0)))
    return b.op("Where", inside, product, b.constant(0.0))


def _sinc(b: Builder, x: str) -> str:
    angle = b.op("Mul", x, math.pi)
    at_zero = b.op("Equal", x, 0.0)
    safe = b.op("Where", at_zero, b.constant(1.0), angle)
    return b.op("Where", at_zero, b.constant(1.0), b.op("Div", b.op("Sin", safe), safe))


FILTERS: dict[str, Callable[[Builder, str], str]] = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}


def _torch_weights(b: Builder, centres_O1: str, pixels_1I: str, source: str, interpolation: str) -> str:
    """Weights without widening: torch clamps the place (bilinear) or the pixels it reads (bicubic) to the image."""
    last = b.op("Sub", b.real(source), 1.0)
    places_O1 = b.op("Sub", centres_O1, 0.5)
    if interpolation == "bilinear":
        clamped = b.op("Min", b.op("Max", places_O1, b.constant(0.0)), last)
        return _triangle(b, b.op("Sub", pixels_1I, clamped))
    floor_O1 = b.op("Floor", places_O1)
    total = ""
    for tap in (-1.0, 0.0, 1.0, 2.0):
        read_O1 = b.op("Add", floor_O1, tap)
        clamped = b.op("Min", b.op("Max", read_O1, b.constant(0.0)), last)
        here_OI = b.real(b.op("Equal", pixels_1I, clamped))
        weight_O1 = _cubic(b, b.op("Sub", places_O1, read_O1), TORCH_CUBIC)
        part = b.op("Mul", here_OI, weight_O1)
        total = part if not total else b.op("Add", total, part)
    return total
