"""Which channels belong together, found by running the net once on labels.

Every index of every dimension of every parameter and buffer has a number. While the net runs, each activation is shadowed
by a tensor of the same shape that says which weight index made each element (0: none that could be removed). Operators
that only move data are run on the labels as they are, so splits, concatenations, flattening, channel shuffles and window
partitions need no rule of their own; element-wise operators join the labels that meet; convolutions and linear layers join
an input channel with the weight's input index and start anew with its output index. An operator without a rule freezes
what goes through it. Labels joined with 0 stay; each remaining class can be removed from every tensor at once, and that
gives what the net gives with those channels zeroed.

Watching operators, not modules, sees functional calls and parameters that no layer owns, and needs no graph library.

N images, C channels, H, W pixels.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.pruning.cost import evaluating
from toolkit.pruning.labels import Labels, tidy
from toolkit.pruning.rules import rule_for

logger = logging.getLogger(__name__)


def couple(net: nn.Module, example_NCHW: Tensor) -> Labels:
    """Run `net` on `example_NCHW` and return the labels with all couplings found; what the net returns is frozen.

    Branches that run in training only (auxiliary classifiers) are run too: containers then think they train while layers
    do not, so statistics and random numbers stay as they are. `net` is left as it was.
    """
    labels = Labels(net)
    with evaluating(net):
        _trace(net, example_NCHW, labels)
        unused = {name for name, _ in net.named_parameters()} - labels.touched
        if unused:
            for module in net.modules():
                module.training = any(True for _ in module.children())
            try:
                _trace(net, torch.cat([example_NCHW, example_NCHW]), labels)
            except RuntimeError as error:
                logger.warning(
                    "Branches that run in training only do not run at %d x %d pixels (%s); they will not fit the pruned net.",
                    *example_NCHW.shape[-2:],
                    error,
                )
    return labels


def _trace(net: nn.Module, example_NCHW: Tensor, labels: Labels) -> None:
    with _Shadow(labels):
        outputs = net(example_NCHW)
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor):
            labels.freeze(labels.of(tensor))


class _Shadow(TorchDispatchMode):
    """Runs operators as they are and lets `labels` follow."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = rule_for(func)
        made = rule(self.labels, func, args, kwargs, out) if rule is not None else None
        if made is None:
            self.labels.stopped_at.add(func._overloadpacket.__name__)
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self.labels.freeze_use(tensor)
            return out
        tensors = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        for tensor, labels in zip(tensors, made, strict=False):
            self.labels.of_activation[tensor] = tidy(labels)
        return out
