"""What a bundle's last layer reads: the features its answer is computed from, together with the answer.

An exported bundle is asked through its graph, as in service, with the input of the last layer as one more output; one that
is not exported through its module. In a graph of unknown origin the last layer is looked for behind what only reshapes or
rescales the answer; where something else computes it (an average over members, a custom operator), the logits are the
features and `source` says so.

Legend: N images, C channels, H height, W width, K labels, D features.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from toolkit.backends.adapted import AdaptedRunner
from toolkit.backends.graph_files import read_graph
from toolkit.backends.opening import open_runner
from toolkit.backends.run_onnx import open_session
from toolkit.backends.runner import pixel_batch
from toolkit.bundle import ONNX, Bundle, TensorSpec
from toolkit.errors import UsageError
from toolkit.models import Deployed, find_head, restore
from toolkit.models.restoring import GRAPH_ONLY

LOGITS = "the logits"
LAST_LAYERS = ("Gemm", "MatMul", "Conv", "FusedMatMul", "FusedConv", "FusedGemm")
PASSED_OVER = [
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "Transpose",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Clip",
    "Log",
    "Dropout",
    "GlobalAveragePool",
    "ReduceMean",
    "DequantizeLinear",
    "QuantizeLinear",
]

Answer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class FeatureRunner:
    """Float32 pixels 0..255 (N, C, H, W) to logits (N, K) and features (N, D); `source` says in words what the features are."""

    source: str
    run: Callable[[np.ndarray], Answer]

    def __call__(self, images_NCHW: np.ndarray) -> Answer:
        """Logits (N, K) and features (N, D), a spatial map averaged over its places."""
        logits_NK, features = self.run(images_NCHW)
        return np.asarray(logits_NK, np.float64), _pooled(np.asarray(features, np.float32))


def open_features(bundle: Bundle) -> FeatureRunner:
    """The runner of `bundle` that also gives its features. Raises `InputRefused` when it lacks or damages what it needs."""
    if not bundle.has(ONNX):
        return _of_module(bundle)
    runner = open_runner(bundle)
    value = last_layer_input(read_graph(bundle.file(ONNX)))
    if value is None:
        return FeatureRunner(LOGITS, lambda images_NCHW: _twice(runner(images_NCHW)))
    source = f"the input of the graph's last layer ({value})"
    if bundle.manifest.architecture.key == GRAPH_ONLY:
        features = _adapted(bundle, value)
        return FeatureRunner(source, lambda images_NCHW: (runner(images_NCHW), features(images_NCHW)))
    session = _with_output(bundle.file(ONNX), value, open_session)
    image, logits = session.get_inputs()[0].name, session.get_outputs()[0].name
    return FeatureRunner(source, lambda x: tuple(session.run([logits, value], {image: pixel_batch(x, name=str(bundle.path))})))


def last_layer_input(graph: onnx.ModelProto) -> str | None:
    """The value that the layer writing the graph's first output reads, or None where no such layer is found."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    constants |= {name for name, node in makers.items() if node.op_type == "Constant"}
    value = graph.graph.output[0].name
    while value in makers:
        node = makers[value]
        computed = [name for name in node.input if name and name not in constants]
        if node.op_type in LAST_LAYERS:
            return computed[0] if computed and computed[0] in makers else None
        if node.op_type not in PASSED_OVER or len(computed) != 1:
            return None
        value = computed[0]
    return None


def _of_module(bundle: Bundle) -> FeatureRunner:
    deployed = Deployed(restore(bundle), bundle.manifest.preprocessing)
    try:
        head = deployed.net.get_submodule(find_head(deployed.net))
    except UsageError:
        return FeatureRunner(LOGITS, lambda x: _twice(_run(deployed, x)))
    taken: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        taken.append(inputs[0].detach().clone())

    head.register_forward_pre_hook(keep)

    def run(images_NCHW: np.ndarray) -> Answer:
        taken.clear()
        logits_NK = _run(deployed, images_NCHW)
        return logits_NK, taken[-1].numpy()

    return FeatureRunner("the input of the head", run)


def _twice(logits_NK: np.ndarray) -> Answer:
    return logits_NK, logits_NK


def _run(deployed: nn.Module, images_NCHW: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return deployed(torch.from_numpy(pixel_batch(images_NCHW, name="the module"))).numpy()


def _adapted(bundle: Bundle, value: str) -> AdaptedRunner:
    features = TensorSpec(name=value, dtype="float32", dims=("batch", "features"), layout="NK", meaning="logits")
    contract = dataclasses.replace(bundle.manifest.contract, outputs=(features,))
    preprocessing = bundle.manifest.preprocessing
    return _with_output(
        bundle.file(ONNX), value, lambda path: AdaptedRunner(path, contract=contract, preprocessing=preprocessing)
    )


def _with_output(graph: Path, value: str, opener: Callable):
    """What `opener` makes of a copy of `graph` that also returns `value`; the copy lives only until it is loaded."""
    model = onnx.load(str(graph))
    model.graph.output.append(onnx.ValueInfoProto(name=value))
    with tempfile.TemporaryDirectory(prefix="toolkit-features-") as folder:
        path = Path(folder) / ONNX
        onnx.save_model(model, str(path), save_as_external_data=model.ByteSize() > 2**30, location=f"{ONNX}.data")
        return opener(path)


def _pooled(features: np.ndarray) -> np.ndarray:
    """Features (N, D) from (N, D), (N, D, ...): averaged over all places but the first two dimensions."""
    return features if features.ndim == 2 else features.reshape(*features.shape[:2], -1).mean(axis=2)
