"""The short way to a graph, for convolutional networks: fold, trace with a fixed batch, free the batch in the graph.

Tracing with a symbolic batch costs twice as much as with a number, and in a convolutional network the number ends up in the
shapes of inputs and outputs and in a few reshapes, where it can be freed afterwards. That is a bet, so it is checked: the
freed graph must give the module's own answers at two batch sizes that were never traced. Where it does not, and for networks
where it rarely does (a class token is expanded to the batch), the caller takes the long way.

Legend: N images, C channels, H height, W width, K labels.
"""

import ast
import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from toolkit.backends.describe import CLASSES, SCOPES, module_path
from toolkit.backends.fold import fold_batchnorm
from toolkit.backends.run_eager import EagerRunner
from toolkit.backends.run_onnx import OnnxRunner
from toolkit.backends.runner import Runner
from toolkit.errors import InputRefused, UsageError

TRACED_BATCH = 11
UNSEEN_BATCHES = (1, 3)
CLOSE = 1e-3
OWNERS = (_ConvNd, _BatchNorm, nn.Linear, nn.GroupNorm, nn.PReLU)

Trace = Callable[[nn.Module, torch.Tensor], onnx.ModelProto]


def suits(deployed: nn.Module) -> bool:
    """Whether the short way is worth trying: a network of convolutions, with nothing but layers that treat images apart."""
    owners = [module for module in deployed.modules() if next(module.parameters(recurse=False), None) is not None]
    return any(isinstance(m, _ConvNd) for m in owners) and all(isinstance(m, OWNERS) for m in owners)


def fast_trace(deployed: nn.Module, shape_CHW: tuple[int, ...], *, trace: Trace, batch_name: str) -> onnx.ModelProto | None:
    """The graph of `deployed` with its batch dimension named `batch_name`, or None where the batch could not be freed.

    `trace` writes a module at a fixed example batch as a graph. Hold the graph to `same_answers` once it is written.
    """
    module = _view(deployed).cpu().eval()
    inner = getattr(module, "net", None)
    prefix = "net." if isinstance(inner, nn.Module) else ""
    folded = fold_batchnorm(inner if isinstance(inner, nn.Module) else module)
    try:
        model = trace(module, torch.zeros(TRACED_BATCH, *shape_CHW))
        if not _free_batch(model, batch_name):
            return None
        _name_after_norm(model, {prefix + conv: prefix + norm for conv, norm in folded.items()})
        return model
    except (InputRefused, UsageError):
        return None


def same_answers(graph: Path, deployed: nn.Module, shape_CHW: tuple[int, ...]) -> bool:
    """Whether the graph gives the answers of `deployed` (N images to logits_NK) at batch sizes that were never traced."""
    try:
        runner = OnnxRunner(graph, threads=1, optimisation="off")
        return all(_same(runner, EagerRunner(deployed, threads=1), _ramps(batch, shape_CHW)) for batch in UNSEEN_BATCHES)
    except (InputRefused, UsageError):
        return False


def _same(runner: Runner, reference: Runner, images_NCHW: np.ndarray) -> bool:
    expected_NK, found_NK = reference(images_NCHW), runner(images_NCHW)
    if expected_NK.shape != found_NK.shape:
        return False
    error, scale = np.sqrt(np.mean((found_NK - expected_NK) ** 2)), np.sqrt(np.mean(expected_NK**2))
    return bool(error <= CLOSE * scale)


def _view(module: nn.Module) -> nn.Module:
    """A copy of the module whose parts can be replaced, with the same tensors: they are only read, and may be large."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo | {id(b): b for b in module.buffers()})


def _free_batch(model: onnx.ModelProto, batch_name: str) -> bool:
    """Replace the traced batch by a name where it stands for the batch; False where a reshape cannot be freed."""
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_value != TRACED_BATCH:
            return False
        first.dim_param = batch_name
    del model.graph.value_info[:]
    return all(_free_reshape(model, node) for node in model.graph.node if node.op_type == "Reshape")


def _free_reshape(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Let a reshape to [batch, ...] copy its first dimension from its input (0); True also where there is nothing to do."""
    target = next((tensor for tensor in model.graph.initializer if tensor.name == node.input[1]), None)
    if target is None:
        return False
    dims = numpy_helper.to_array(target).copy()
    if dims.size == 0 or TRACED_BATCH not in dims:
        return True
    if dims[0] != TRACED_BATCH or 0 in dims:
        return False
    dims[0] = 0
    for attribute in node.attribute:
        if attribute.name == "allowzero":
            attribute.i = 0
    name = f"{target.name}_free_{node.name}"
    model.graph.initializer.append(numpy_helper.from_array(dims, name))
    node.input[1] = name
    return True


def _ramps(batch: int, shape_CHW: tuple[int, ...]) -> np.ndarray:
    """Grey images (N, C, H, W) that go from one level to another: on noise or odd colours a network may amplify rounding."""
    ends_2N111 = np.random.default_rng(batch).uniform(64, 192, (2, batch, 1, 1, 1))
    share_W = np.linspace(0, 1, shape_CHW[2])
    images_N11W = ends_2N111[0] * (1 - share_W) + ends_2N111[1] * share_W
    return np.broadcast_to(images_N11W, (batch, *shape_CHW)).astype(np.float32)


def _name_after_norm(model: onnx.ModelProto, folded: Mapping[str, str]) -> None:
    """Say of a folded convolution that it ends its BatchNorm, as the long way does: their output is one value."""
    for node in model.graph.node:
        conv = module_path(node)
        if conv not in folded:
            continue
        for entry in node.metadata_props:
            if entry.key in (SCOPES, CLASSES):
                parts = ast.literal_eval(entry.value)
                parts[-2] = folded[conv] if entry.key == SCOPES else "torch.nn.modules.batchnorm.BatchNorm2d"
                entry.value = str(parts)
