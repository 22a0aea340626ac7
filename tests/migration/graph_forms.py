"""One trained classifier as graphs in the forms that services use: the same answers, asked for in other ways."""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.checks.planted import trained, write_graph

NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
FORMS: dict[str, dict[str, Any]] = {
    "pixels": {"kwargs": {"input": "pixels"}},
    "uint8_nhwc": {},
    "normalised": {"kwargs": {"input": "normalised"}, "preprocessing": NORMALISED},
    "fixed_batch": {"kwargs": {"input": "pixels"}},
    "probabilities": {"kwargs": {"input": "pixels"}},
    "any_size": {"kwargs": {"input": "pixels"}, "preprocessing": {"size_px": [32, 32]}},
}


def write_form(form: str, path: Path, *, num_epochs: int = 0) -> Path:
    """The net of `trained` at `path` in one of `FORMS`; `FORMS[form]` is what adopting it needs to be told."""
    write_graph(trained(num_epochs=num_epochs), path)
    model = onnx.load(path)
    graph = model.graph
    taken = graph.input[0]
    if form == "uint8_nhwc":
        taken.CopyFrom(helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", 32, 32, 3]))
        graph.node.insert(0, helper.make_node("Transpose", ["floats"], ["images"], perm=[0, 3, 1, 2]))
        graph.node.insert(0, helper.make_node("Cast", ["photos"], ["floats"], to=TensorProto.FLOAT))
    elif form == "normalised":
        del graph.node[:2]
        taken.name = graph.node[0].input[0]
    elif form == "fixed_batch":
        taken.type.tensor_type.shape.dim[0].dim_value = 8
        graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    elif form == "probabilities":
        graph.node.append(helper.make_node("Softmax", ["logits"], ["scores"]))
        graph.output[0].name = "scores"
    elif form == "any_size":
        taken.type.tensor_type.shape.dim[2].dim_param, taken.type.tensor_type.shape.dim[3].dim_param = "h", "w"
    onnx.save(model, path)
    return path
