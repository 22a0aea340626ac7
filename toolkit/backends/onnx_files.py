"""What may be read beside an ONNX file, and what is written into one.

External data is read by name from the folder of the graph. A name that leaves the folder, or a link out of it, would let a
model read any file of the machine, so both are refused before any library opens them; so is data shorter than it says,
which onnx's own checker accepts.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from toolkit.errors import InputRefused


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph without its external data. Raises `InputRefused` when the file is not an ONNX model."""
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise InputRefused(f"{path} does not exist.") from error
    except (DecodeError, ValueError, OSError) as error:
        raise InputRefused(f"{path} is not an ONNX model ({error}).") from error
    if not model.graph.output or not model.opset_import:
        raise InputRefused(f"{path} is not an ONNX model (it has no outputs or no opset).")
    return model


def refuse_outside_data(path: Path) -> None:
    """Raise `InputRefused` when the graph at `path` refers to data outside its folder, through a link, or cut short."""
    for tensor in _external_tensors(read_graph(path)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        name = PurePosixPath(location)
        if not location or name.is_absolute() or ".." in name.parts or "\\" in location:
            raise InputRefused(f"{path} keeps tensor '{tensor.name}' in '{location}', outside its folder: refused.")
        file = path.parent / name
        if file.is_symlink() or not file.is_file():
            raise InputRefused(f"{path} keeps tensor '{tensor.name}' in '{location}', which is missing or a link: refused.")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if file.stat().st_size < end:
            raise InputRefused(f"{file} is cut short: '{tensor.name}' ends at byte {end}, the file has {file.stat().st_size}.")


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for tensor in getattr(graph, "initializer", ()):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                    yield attribute.t
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def clean_metadata(model: onnx.ModelProto) -> None:
    """Drop what tells of the machine that exported (stack traces, file paths); module names and classes stay."""
    kept = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "namespace", "pkg.torch.onnx.fx_node_name")
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            properties = {p.key: p.value for p in node.metadata_props if p.key in kept}
            del node.metadata_props[:]
            for key in sorted(properties):
                node.metadata_props.add(key=key, value=properties[key])
            node.doc_string = ""
        for value in (*getattr(graph, "value_info", ()), *graph.input, *graph.output):
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
