"""Convolution and BatchNorm as one convolution, before a graph is traced.

The exporter folds them too, but only after it decomposed and translated every BatchNorm, which is most of an export's time on
a convolutional network. Which pairs may be folded is read from a symbolic run of the module: the convolution's output must go
into that BatchNorm and nowhere else. A module that cannot be run symbolically, or shares what would change, stays as it is.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class AfterNorm(nn.Module):
    """What is left of a BatchNorm that also applied dropout and an activation, under their old names."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop, self.act = drop, act

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(features))


class _Tracer(fx.Tracer):
    """Convolutions and norms are leaves, whatever library their class comes from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (_BatchNorm, _ConvNd)) or super().is_leaf_module(m, module_qualified_name)


def fold_batchnorm(net: nn.Module) -> dict[str, str]:
    """Fold every BatchNorm of `net` (eval mode, changed in place) into the convolution before it, where that is exact.

    The new weights are computed in float64. Returns the names of the pairs, convolution → BatchNorm.
    """
    modules = dict(net.named_modules())
    folded = {}
    for conv_name, norm_name in _pairs(net, modules).items():
        norm = modules[norm_name]
        rest = _rest(norm)
        if rest is not None:
            _fold(modules[conv_name], norm)
            net.set_submodule(norm_name, rest)
            folded[conv_name] = norm_name
    return folded


def _pairs(net: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    try:
        graph = _Tracer().trace(net)
    except Exception:  # control flow on values, foreign objects: any refusal means that the module is not known to be safe
        return {}
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    pairs = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _BatchNorm):
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        alone = calls[source.target] == calls[node.target] == 1 and all(owners[id(p)] == 1 for p in conv.parameters())
        if alone and _foldable(conv, norm):
            pairs[str(source.target)] = str(node.target)
    return pairs


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    plain = isinstance(conv, _ConvNd) and not isinstance(conv, _ConvTransposeNd) and not conv.training
    hooked = any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in (conv, norm))
    return plain and not hooked and getattr(norm, "running_var", None) is not None and not norm.training


def _rest(norm: nn.Module) -> nn.Module | None:
    """What remains to be done after the norm; None for a kind of norm that does more than is known."""
    if type(norm) in PLAIN_NORMS:
        return nn.Identity()
    children = dict(norm.named_children())
    return AfterNorm(children["drop"], children["act"]) if set(children) == {"drop", "act"} else None


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, _ConvNd)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_C = (norm.running_var.double() + norm.eps).rsqrt()
    shift_C = -norm.running_mean.double()
    if conv.bias is not None:
        shift_C = shift_C + conv.bias.double()
    if norm.weight is not None:
        scale_C = scale_C * norm.weight.double()
    bias_C = shift_C * scale_C + (0 if norm.bias is None else norm.bias.double())
    weight = conv.weight.double() * scale_C.reshape(-1, *[1] * (conv.weight.ndim - 1))
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias_C.to(conv.weight.dtype), requires_grad=False)
