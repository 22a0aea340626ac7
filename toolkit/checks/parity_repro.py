"""The smallest thing that still shows a fault: the part of the graph between the last right values and the first wrong one.

Its inputs are what the untouched module computes there in float64, rounded to float32, so that an error in the output comes
from the part and from nothing before it. Whoever gets the folder needs onnxruntime, numpy and safetensors alone, not the code
of the model.

Legend: N images, C channels, H height, W width.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from safetensors.numpy import save
from torch import nn

from toolkit.backends.graph_files import read_graph, require_sound_files
from toolkit.backends.noise import measure_noise
from toolkit.checks.parity_localise import reference_values

MAX_MESSAGE_BYTES = 1_900_000_000  # what a protobuf message can hold
SCRIPT = "parity_repro_run.py"
README = """# {title}

{sentence}.

`python repro.py` runs the part of the graph in `model.onnx` ({num_nodes} nodes) on `inputs.safetensors` and prints its error
against `expected.safetensors` (float64, with the floor of each image: what float32 itself costs there). It needs
`pip install onnxruntime numpy safetensors` and exits with 1 while an error is above {k:g} floors.
"""


def repro_files(
    reference: nn.Module, onnx_path: Path, images_NCHW: np.ndarray, fault: Mapping[str, Any], *, k: float, num_runs: int
) -> dict[str, bytes]:
    """The files of a repro, by name, for a `fault` that `localise` found in the graph at `onnx_path` on these images.

    Where no module is to blame (`fault["culprit"]` is None) the part is the whole graph. Empty where the part is larger than
    an ONNX file without external data can be.
    """
    model = read_graph(onnx_path)
    culprit = fault["culprit"]
    output = culprit["value"] if culprit else model.graph.output[0].name
    right = {
        place["value"]: place["module"]
        for place in fault["places"]
        if culprit and place["value"] != output and place["ratio"] is not None and place["ratio"] <= k
    }
    nodes, sources = _between(model.graph, output, {*right, *(value.name for value in model.graph.input)})
    modules = {right[name] for name in sources if name in right} | ({culprit["module"]} if culprit else set())
    double, floor = reference_values(reference, images_NCHW, modules, num_runs)
    inputs = {name: double[right[name]].astype(np.float32) if name in right else images_NCHW for name in sources}
    part = _part(model, nodes, {name: value.shape for name, value in inputs.items()}, output, onnx_path)
    if part.ByteSize() > MAX_MESSAGE_BYTES:
        return {}
    if culprit:
        expected = {"output": double[culprit["module"]], "floor": floor[culprit["module"]]}
    else:
        noise = measure_noise(reference, images_NCHW, num_runs=num_runs)
        expected = {"output": noise.double_NK, "floor": noise.floor_N}
    facts = {"sentence": fault["sentence"], "output": output, "num_nodes": len(nodes), "k": k, "culprit": culprit}
    title = f"A fault in {culprit['module']}" if culprit else "A graph that is not its model"
    return {
        "model.onnx": part.SerializeToString(deterministic=True),
        "inputs.safetensors": save({name: np.ascontiguousarray(value) for name, value in inputs.items()}),
        "expected.safetensors": save({name: np.ascontiguousarray(value, np.float64) for name, value in expected.items()}),
        "fault.json": json.dumps(facts, indent=1).encode(),
        "README.md": README.format(title=title, **facts).encode(),
        "repro.py": (resources.files("toolkit.checks") / SCRIPT).read_bytes(),
    }


def _between(graph: onnx.GraphProto, output: str, ends: set[str]) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes that `output` is computed by from values of `ends`, in the graph's order, and those values."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needed: set[int] = set()
    sources: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in ends:
            sources.add(name)
        elif name in makers and makers[name] not in needed:
            needed.add(makers[name])
            waiting.extend(_reads(graph.node[makers[name]]))
    return [graph.node[index] for index in sorted(needed)], sorted(sources)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """The names a node reads, in its inner graphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _reads(each)


def _part(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]], output: str, path: Path
) -> onnx.ModelProto:
    """A graph of `nodes` from inputs of these shapes to `output`, with the tensors they use."""
    used = {name for node in nodes for name in _reads(node)}
    require_sound_files(path)
    tensors = []
    for tensor in model.graph.initializer:
        if tensor.name in used:
            copied = TensorProto()
            copied.CopyFrom(tensor)
            if uses_external_data(copied):
                load_external_data_for_tensor(copied, str(path.parent))
                copied.data_location = TensorProto.DEFAULT
                del copied.external_data[:]
            tensors.append(copied)
    graph = helper.make_graph(
        nodes,
        "repro",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]]) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        tensors,
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    part.functions.extend(model.functions)
    return part
