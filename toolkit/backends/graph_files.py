"""Where an ONNX graph keeps its tensors, and whether those places may be read.

A graph may hold its tensors in files beside it and name them by path. Such a name is input from outside: it must be a
plain file in the graph's own directory, long enough for what the graph says it holds. onnxruntime follows links, and onnx's
checker accepts truncated files, so neither can be left to judge.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from toolkit.errors import InputRefused


def require_sound_files(graph: Path | str | bytes) -> None:
    """Raise `InputRefused` unless the graph can be read and its external tensors lie whole in plain files beside it."""
    if isinstance(graph, bytes):
        if any(True for _ in external_tensors(read_graph(graph))):
            raise InputRefused("the graph in memory names files for its tensors: give the path of the graph instead.")
        return
    path = Path(graph)
    for tensor in external_tensors(read_graph(path)):
        _require_sound_tensor(tensor, path)


def read_graph(graph: Path | str | bytes) -> onnx.ModelProto:
    """The graph without its external tensors. Raises `InputRefused` when it is absent, a link or not an ONNX graph."""
    origin = "the graph in memory" if isinstance(graph, bytes) else str(graph)
    if not isinstance(graph, bytes):
        if Path(graph).is_symlink() or not Path(graph).is_file():
            raise InputRefused(f"{graph} is missing or not a plain file: copy the ONNX graph itself to this place.")
        graph = Path(graph).read_bytes()
    try:
        model = onnx.load_model_from_string(graph)
    except DecodeError as error:
        raise InputRefused(f"{origin} is not an ONNX graph, or a damaged one ({error}). Restore it from a copy.") from error
    if not model.opset_import or not model.graph.output:
        raise InputRefused(f"{origin} is not an ONNX graph: it declares no opset or no output.")
    return model


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the graph, its subgraphs and functions that lies in another file."""
    nodes = [node for function in model.functions for node in function.node]
    for tensor in _tensors(model.graph, nodes):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def external_location(tensor: onnx.TensorProto) -> str:
    """The file name an external tensor gives."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in (*nodes, *graph.node):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner, [])


def _require_sound_tensor(tensor: onnx.TensorProto, graph: Path) -> None:
    location = external_location(tensor)
    name = PurePosixPath(location)
    refused = f"{graph}: tensor '{tensor.name}' names the file '{location}'"
    if not location or name.is_absolute() or "\\" in location or len(name.parts) != 1 or location in ("..", "."):
        raise InputRefused(f"{refused}: external tensors must lie in a file beside the graph, named without a path.")
    file = graph.parent / location
    if file.is_symlink() or not file.is_file() or file.stat().st_nlink > 1:
        raise InputRefused(f"{refused}, which is missing or a link: copy the file itself beside the graph.")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise InputRefused(f"{refused} with an offset or length that is no number. The graph is damaged.") from error
    if min(offset, length) < 0 or offset + length > file.stat().st_size:
        raise InputRefused(f"{refused} up to byte {offset + length}, but it holds {file.stat().st_size}: it is truncated.")
