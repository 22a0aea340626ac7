"""Does a graph keep the contract its bundle promises? Names, types, dimensions and labels, read from the file.

Callers are written against the manifest, and onnxruntime runs a graph with another output order or a wrong declared shape
without a word.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from toolkit.backends.graph_files import read_graph
from toolkit.backends.number_formats import graph_in
from toolkit.backends.pixel_front import has_front, model_part
from toolkit.bundle import Bundle, Contract, TensorSpec
from toolkit.errors import InputRefused


def graph_to_run(bundle: Bundle, precision: str) -> Path | bytes:
    """The bundle's graph in `precision` as the toolkit runs it, on pixels that were rendered before.

    That is the file itself or, of a graph with its preprocessing inside, the model behind it. Raises as `graph_in` does, and
    `InputRefused` for a graph that does not keep the bundle's contract.
    """
    path = graph_in(bundle, precision)
    model = read_graph(path)
    _require_kept(model, path, bundle.manifest.contract, bundle.manifest.labels, noted=False)
    return model_part(path) if has_front(model) else path


def require_contract(path: Path, contract: Contract, labels: Sequence[str]) -> None:
    """Raise `InputRefused`, naming every difference, unless the graph at `path` is what `contract` and `labels` say."""
    _require_kept(read_graph(path), path, contract, labels, noted=True)


def _require_kept(model: onnx.ModelProto, path: Path, contract: Contract, labels: Sequence[str], *, noted: bool) -> None:
    """`noted`: the graph's properties must hold the labels; else they need only not contradict."""
    problems = [
        *_tensor_problems("input", model.graph.input, contract.inputs),
        *_tensor_problems("output", model.graph.output, contract.outputs),
        *_label_problems(model, labels, noted),
    ]
    if problems:
        raise InputRefused(f"the graph {path.name} does not keep its bundle's contract: {'; '.join(problems)}.")


def _tensor_problems(kind: str, held: Sequence[onnx.ValueInfoProto], promised: Sequence[TensorSpec]) -> Iterator[str]:
    names = [value.name for value in held]
    if names != [spec.name for spec in promised]:
        yield f"its {kind}s are {', '.join(names)}, promised are {', '.join(spec.name for spec in promised)}"
        return
    for value, spec in zip(held, promised, strict=True):
        tensor = value.type.tensor_type
        dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
        dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
        if dtype != spec.dtype:
            yield f"{kind} '{spec.name}' is {dtype}, promised is {spec.dtype}"
        dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        if dims != list(spec.dims):
            yield f"{kind} '{spec.name}' has the dimensions {dims}, promised are {list(spec.dims)}"


def _label_problems(model: onnx.ModelProto, labels: Sequence[str], required: bool) -> Iterator[str]:
    noted = {entry.key: entry.value for entry in model.metadata_props}.get("labels")
    if (noted is None and required) or (noted is not None and json.loads(noted) != list(labels)):
        yield f"its labels are {noted or 'not noted'}, promised are {json.dumps(list(labels), ensure_ascii=False)[:200]}"
