"""What a graph says of itself: enough to serve and to explain it, nothing of the machine that made it.

The exporter notes on every node which module it comes from, and the Python stack that led there, with the folders of whoever
ran it. The module path stays, because a failing parity check names its culprit by it; of the stack one line stays, the
model's own, with its file named relative to the package. All else goes, so that equal models give equal bytes anywhere.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import onnx

from toolkit import __version__
from toolkit.bundle import Preprocessing

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
STACK = "pkg.torch.onnx.stack_trace"
SOURCE = "source"

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
LIBRARY = re.compile(r"(^|/)(torch|toolkit/(models|data|backends))/")


def describe_graph(
    model: onnx.ModelProto, *, preprocessing: Preprocessing, labels: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Replace the exporter's notes in `model` by ours: `labels` and `preprocessing` (JSON), `toolkit`, and `metadata`."""
    properties = {
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "preprocessing": json.dumps(asdict(preprocessing), sort_keys=True),
        "toolkit": f"model-upgrade-toolkit {__version__}",
        **metadata,
    }
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "model"
    _replace(model.metadata_props, properties)
    _replace(model.graph.metadata_props, {})
    for node in _nodes(model):
        notes = {entry.key: entry.value for entry in node.metadata_props}
        kept = {key: notes[key] for key in (SCOPES, CLASSES) if key in notes}
        source = _source(notes.get(STACK, ""))
        _replace(node.metadata_props, {**kept, SOURCE: source} if source else kept)
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        _replace(value.metadata_props, {})
        value.doc_string = ""


def module_path(node: onnx.NodeProto) -> str:
    """The qualified name of the module a node comes from (`net.layer3.0.bn2`); empty for the outermost or an unknown one."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(notes.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if len(scopes) >= 2 else ""


def source_line(node: onnx.NodeProto) -> str:
    """The line of the model's code a node comes from (`package/file.py:line`); empty where it is unknown."""
    return next((entry.value for entry in node.metadata_props if entry.key == SOURCE), "")


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting.extend(graph for graph in (attribute.g, *attribute.graphs) if graph.node)


def _source(stack: str) -> str:
    """`package/file.py:line` of the model's innermost own line in a Python stack; empty when there is none."""
    frames = [f"{_relative(found['file'])}:{found['line']}" for found in FRAME.finditer(stack)]
    own = [frame for frame in frames if not LIBRARY.search(frame)]
    return own[-1] if own else ""


def _relative(file: str) -> str:
    path = PurePath(file)
    if "site-packages" in path.parts:
        start = len(path.parts) - path.parts[::-1].index("site-packages")
        return PurePath(*path.parts[start:]).as_posix()
    roots = [root for root in (Path(entry).resolve() for entry in sys.path) if path.is_relative_to(root)]
    return path.relative_to(max(roots, key=lambda root: len(root.parts))).as_posix() if roots else path.name


def _replace(properties: Any, entries: Mapping[str, str]) -> None:
    del properties[:]
    for key in sorted(entries):
        properties.add(key=key, value=entries[key])
