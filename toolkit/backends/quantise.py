"""The int8 variant of an exported graph: static quantisation with QuantizeLinear and DequantizeLinear around the operators.

Scales come from training images, an own one for each output channel of a weight. Convolutional networks are quantised
throughout, because every float operator between two integer ones costs two conversions; where attention is at work only the
matrix products and convolutions are, because softmax, LayerNorm and GELU lose too much in 256 steps and gain little.

Legend: N images, C channels, H height, W width.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from toolkit.backends.describe import module_path
from toolkit.backends.ranges import MAX_BYTES
from toolkit.backends.write import quiet, save_graph
from toolkit.errors import InputRefused, UsageError

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = (
    *("Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Pad"),
)
ATTENTION = ("Softmax", "LayerNormalization", "RMSNormalization", "Attention", "MultiHeadAttention")
WARNINGS, ERRORS = 2, 3
PARTS = ("first", "last", "depthwise")


@dataclass(frozen=True)
class Calibration:
    """How scales are found.

    `num_images` training images, evenly chosen. `method`: `minmax` takes all that occurred, `percentile` leaves the share
    beyond `percentile` (50..100) out, `entropy` the cut that loses least information (TensorRT's). `symmetric` puts the zero
    point of activations at 0, which TensorRT demands and costs a bit where they are never negative. `reduce_range` uses 7 bits
    of the weights, for x86 processors without VNNI, whose 16-bit sums may overflow. `keep_fp32` names nodes of the graph, or
    `first`, `last` and `depthwise` for those layers, that are not quantised.
    """

    num_images: int = 128
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = 99.99
    symmetric: bool = False
    reduce_range: bool = False
    keep_fp32: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"int8: method is '{self.method}'; choose {', '.join(METHODS)}.")
        if self.num_images < 1:
            raise UsageError(f"int8: num_images is {self.num_images}; calibration needs at least 1 image.")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"int8: percentile is {self.percentile}; give more than 50 and at most 100 (99.99 is usual).")


@dataclass(frozen=True)
class QuantisedFacts:
    """What was written: `num_quantised` and `kept` of the convolutions and matrix products, and the calibration's settings."""

    num_quantised: int
    kept: tuple[dict[str, str], ...]
    settings: dict[str, Any]


class _Images(CalibrationDataReader):
    """Feeds images in batches; onnxruntime asks for a range of batches at a time, to hold few activations at once."""

    def __init__(self, name: str, images_NCHW: np.ndarray, batch: int) -> None:
        self.name = name
        self.batches = [images_NCHW[start : start + batch] for start in range(0, len(images_NCHW), batch)]
        self.set_range(0, len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left: Iterator[np.ndarray] = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch_NCHW = next(self.left, None)
        return None if batch_NCHW is None else {self.name: np.ascontiguousarray(batch_NCHW, dtype=np.float32)}


def write_int8(
    source: Path, path: Path, images_NCHW: np.ndarray, *, calibration: Calibration | None = None, keep: Sequence[str] = ()
) -> QuantisedFacts:
    """Write the float32 graph `source` to `path` in int8, its inputs and outputs still float32.

    `images_NCHW` (float32 pixels) calibrate; `keep` names parts or nodes besides those of `calibration`. Equal inputs give
    equal bytes. Raises `InputRefused` where there is nothing to quantise or onnxruntime cannot.
    """
    calibration = calibration or Calibration()
    if source.stat().st_size > MAX_BYTES or source.with_name(f"{source.name}.data").exists():
        raise InputRefused("the graph is larger than onnxruntime's quantiser can take (2 GiB)")
    with tempfile.TemporaryDirectory(prefix="toolkit-int8-") as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        with _refusals(), quiet():
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        _name_nodes(model)
        onnx.save(model, prepared)
        kept = _kept(model, [*calibration.keep_fp32, *keep])
        products = [node for node in model.graph.node if node.op_type in PRODUCTS]
        if not [node for node in products if node.name not in kept]:
            raise InputRefused(f"no {', '.join(PRODUCTS)} is left to quantise")
        with _refusals(), quiet():
            _quantise(model, prepared, quantised, images_NCHW, calibration, list(kept))
        result = onnx.load(quantised)
    original = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(result, original | {"precision": "int8"})
    _tidy(result, model)
    save_graph(result, path)
    settings = {"method": calibration.method, "num_images": len(images_NCHW), "symmetric": calibration.symmetric}
    held = [
        {"node": n.name, "op_type": n.op_type, "module": module_path(n), "reason": kept[n.name]}
        for n in products
        if n.name in kept
    ]
    return QuantisedFacts(len(products) - len(held), tuple(held), settings)


def _quantise(
    model: onnx.ModelProto, prepared: Path, quantised: Path, images_NCHW: np.ndarray, calibration: Calibration, kept: list[str]
) -> None:
    attention = any(node.op_type in ATTENTION for node in model.graph.node)
    activations = QuantType.QInt8 if calibration.symmetric else QuantType.QUInt8
    quantize_static(
        prepared,
        quantised,
        _Images(model.graph.input[0].name, images_NCHW, 8),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS if attention else (*PRODUCTS, *BETWEEN)),
        per_channel=True,
        reduce_range=calibration.reduce_range,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
        calibrate_method=METHODS[calibration.method],
        extra_options={
            "ActivationSymmetric": calibration.symmetric,
            "CalibTensorRangeSymmetric": False,
            "CalibPercentile": calibration.percentile,
            "CalibStridedMinMax": 1,
        },
    )


def _name_nodes(model: onnx.ModelProto) -> None:
    """Exclusion goes by name, so every node needs one of its own."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _kept(model: onnx.ModelProto, wanted: Sequence[str]) -> dict[str, str]:
    """The nodes that stay in float32, by name, and why. Raises `UsageError` for a name the graph does not have."""
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    parts = {
        "first": products[:1],
        "last": products[-1:],
        "depthwise": [node for node in products if node.op_type == "Conv" and _groups(node) > 1],
    }
    named = {node.name: node for node in model.graph.node}
    kept: dict[str, str] = {}
    for want in wanted:
        if want not in parts and want not in named:
            raise UsageError(f"int8: keep_fp32 names '{want}', which is no node of the graph; name one, or {', '.join(PARTS)}.")
        for node in parts.get(want) or ([named[want]] if want in named else []):
            kept[node.name] = f"{want} layer" if want in parts else "named in keep_fp32"
    return kept


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _tidy(result: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Inputs and outputs as the float32 graph declares them, and only the operator sets that are used."""
    for ours, theirs in ((result.graph.input, model.graph.input), (result.graph.output, model.graph.output)):
        for value, wanted in zip(ours, theirs, strict=True):
            value.CopyFrom(wanted)
    used = {node.domain for node in result.graph.node} | {""}
    imports = [entry for entry in result.opset_import if entry.domain in used]
    kept = [onnx.OperatorSetIdProto.FromString(entry.SerializeToString()) for entry in imports]
    del result.opset_import[:]
    result.opset_import.extend(kept)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What onnxruntime's quantiser raises, of whatever class, in one line; what it prints of its own steps, not at all."""
    onnxruntime.set_default_logger_severity(ERRORS)
    try:
        yield
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputRefused(f"onnxruntime cannot quantise it: {text}") from error
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)
