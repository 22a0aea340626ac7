"""What an ONNX graph of unknown origin takes and returns, read from the graph.

Names, types, sizes and the batch stand in the graph and are described as they are. Whether its input is pixels or normalised
values does not, so it is never guessed: the wrong choice runs without an error and is merely a worse model.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import onnx

from toolkit.bundle import Contract, TensorSpec
from toolkit.errors import InputRefused, UsageError, unknown_name

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT8: "uint8",
}
AXES = {"N": "batch", "C": "channels", "H": "height", "W": "width", "K": "labels"}
CHANNELS = (1, 3)


@dataclass(frozen=True)
class GraphOptions:
    """What a graph does not say of itself.

    `input`: it takes `pixels` 0..255, or values `normalised` with the preprocessing's mean and std (None: pixels where it
    takes uint8, otherwise it must be given). `output`: `logits` or `probabilities` (None: probabilities where it ends in a
    softmax). `layout`: `NCHW` or `NHWC` (None: where the 1 or 3 channels stand).
    """

    input: Literal["pixels", "normalised"] | None = None
    output: Literal["logits", "probabilities"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("input", self.input, ("pixels", "normalised")),
            ("output", self.output, ("logits", "probabilities")),
            ("layout", self.layout, ("NCHW", "NHWC")),
        ):
            if value is not None and value not in known:
                raise UsageError(f"kwargs.{name} is '{value}'; choose {' or '.join(known)}.")

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> "GraphOptions":
        """The options that `kwargs` gives. Raises `UsageError` for an unknown one."""
        known = [field.name for field in fields(cls)]
        for key in kwargs:
            if key not in known:
                raise unknown_name("setting of an ONNX graph in kwargs", key, known)
        return cls(**kwargs)


def read_contract(model: onnx.ModelProto, options: GraphOptions, *, origin: str) -> Contract:
    """The contract of `model`, named `origin` in errors; its first output is the classes'.

    Raises `InputRefused` for a graph that does not take one batch of images, `UsageError` where an option must be given.
    """
    held = {tensor.name for tensor in model.graph.initializer}  # graphs before IR 4 list their weights as inputs
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise InputRefused(f"{origin} has the inputs {names}; a classifier's graph has one, the batch of images.")
    outputs = model.graph.output
    meaning = options.output or ("probabilities" if _ends_in_softmax(model.graph, outputs[0].name) else "logits")
    scores = _output(outputs[0], meaning, origin)
    others = tuple(_output(value, "features", origin) for value in outputs[1:])
    return Contract((_image_input(inputs[0], options, origin),), (scores, *others))


def image_size(spec: TensorSpec) -> tuple[int | str, int | str, int | str]:
    """Channels, height and width of an image input, each a size or, where it is free, a name."""
    dims = dict(zip(spec.layout, spec.dims, strict=True))
    return dims["C"], dims["H"], dims["W"]


def _image_input(value: onnx.ValueInfoProto, options: GraphOptions, origin: str) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = TYPES.get(tensor.elem_type)
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if dtype is None or len(dims) != 4:
        held = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise InputRefused(
            f"{origin}: its input '{value.name}' is {held} with {len(dims)} dimensions; a batch of images has 4 and is "
            f"{', '.join(TYPES.values())}."
        )
    layout = options.layout or _layout(dims, origin)
    meaning = options.input or ("pixels" if dtype == "uint8" else None)
    if meaning is None:
        raise UsageError(
            f"{origin} takes {dtype} images and does not say in which range. Give kwargs={{input:pixels}} when it takes "
            "0..255, or kwargs={input:normalised} with preprocessing.mean and preprocessing.std as where it is served."
        )
    if meaning == "normalised" and dtype == "uint8":
        raise UsageError(f"{origin} takes uint8 images, which cannot be normalised values: leave kwargs.input out.")
    value_range = (0.0, 255.0) if meaning == "pixels" else None
    return TensorSpec(value.name, dtype, _dims(tensor.shape, layout), layout, meaning, value_range)


def _layout(dims: Sequence[int], origin: str) -> str:
    first, last = dims[1] in CHANNELS, dims[3] in CHANNELS
    if first == last:
        raise UsageError(
            f"{origin} takes images of shape {[dim or '?' for dim in dims]}, which does not show where the channels are: "
            "give kwargs={layout:NCHW} or kwargs={layout:NHWC}."
        )
    return "NCHW" if first else "NHWC"


def _output(value: onnx.ValueInfoProto, meaning: Any, origin: str) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise InputRefused(f"{origin}: its output '{value.name}' is no tensor; remove the post-processing behind the scores.")
    tensor = value.type.tensor_type
    dtype = TYPES.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    layout = {2: "NK", 4: "NKHW"}.get(len(tensor.shape.dim), "")
    return TensorSpec(value.name, dtype, _dims(tensor.shape, layout), layout, meaning)


def _dims(shape: onnx.TensorShapeProto, layout: str) -> tuple[int | str, ...]:
    names = [AXES[axis] for axis in layout] or [f"dim{index}" for index in range(len(shape.dim))]
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or name
        for dim, name in zip(shape.dim, names, strict=True)
    )


def _ends_in_softmax(graph: onnx.GraphProto, output: str) -> bool:
    """Whether `output` is a softmax, perhaps reshaped or cast behind it."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Squeeze", "Flatten"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"
