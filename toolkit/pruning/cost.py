"""What a net costs to run: multiply-accumulates (MACs) of one image, and parameters.

The MACs are counted from the operators that really run, so functional calls (`F.linear` in attention) count as modules
do. They are also attributed to the weight tensors: the MACs of a convolution or linear layer are proportional to the
size of its weight, so the cost of any pruned width follows by arithmetic, and a search need not build candidates.

N images, C channels, H, W pixels.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class MacProfile:
    """The MACs of one image: by the name of the weight tensor that takes part, and those between activations alone."""

    by_tensor: Mapping[str, float]
    other: float

    @property
    def total(self) -> int:
        """All MACs of one image."""
        return round(sum(self.by_tensor.values()) + self.other)


def count_macs(net: nn.Module, example_NCHW: Tensor) -> int:
    """Multiply-accumulates of one image of `example_NCHW` through `net` in eval mode; `net` is left as it was."""
    return profile_macs(net, example_NCHW).total


def count_parameters(net: nn.Module) -> int:
    """The number of parameter values of `net`, tied ones once, frozen ones too."""
    return sum(parameter.numel() for parameter in net.parameters())


def profile_macs(net: nn.Module, example_NCHW: Tensor) -> MacProfile:
    """The MACs of one image of `example_NCHW` through `net` in eval mode, by weight tensor; `net` is left as it was."""
    with evaluating(net), _Counter(net) as counter:
        net(example_NCHW)
    num_images = len(example_NCHW)
    return MacProfile({name: n / num_images for name, n in counter.by_tensor.items()}, counter.other / num_images)


@contextmanager
def evaluating(net: nn.Module):
    """`net` in eval mode without gradients for the length of the block, every operator visible; then as it was."""
    modes = {module: module.training for module in net.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused attention block would hide its linear layers
    try:
        net.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as would a fused attention kernel, chosen by the processor
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes.items():
            module.training = training


class _Counter(TorchDispatchMode):
    """Counts the MACs of the operators run under it, by the parameter whose storage they read."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in net.named_parameters() if p.ndim > 1}
        self.by_tensor: dict[str, float] = {}
        self.other = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        if packet in flop_registry:
            macs = flop_registry[packet](*args, **kwargs, out_val=out) / 2
            pointers = [t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            name = next((self.names[p] for p in pointers if p and p in self.names), None)
            if name is None:
                self.other += macs
            else:
                self.by_tensor[name] = self.by_tensor.get(name, 0.0) + macs
        return out
