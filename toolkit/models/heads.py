"""Heads: the layer that writes the logits, found and replaced without knowing the architecture.

The head is the last layer to run, linear or 1x1 convolution, whose output is as wide as the network's. The network is run
once without data to see that; where it cannot be run so, the last such layer in definition order is taken, which holds for
all torchvision families. After a replacement the network is run again: one with several heads is refused, not half-changed.

Shapes: K classes, D features.
"""

from collections.abc import Sequence

import torch
from torch import nn

from toolkit.errors import UsageError
from toolkit.models.probe import probe

KINDS = (nn.Linear, nn.Conv2d)


def find_head(net: nn.Module) -> str:
    """The qualified name of the layer that writes the logits. Raises `UsageError` where the network has none."""
    return _head(net)[0]


def replace_head(net: nn.Module, num_classes: int, *, seed: int = 0) -> None:
    """Give `net` a new head for `num_classes`, in place, with torch's default initialisation drawn from `seed`.

    Kind, bias, device, type and training mode stay as they were; torch's global random state is untouched. Raises
    `UsageError` where there is no head, or more than one.
    """
    if num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; a head needs at least 1 class")
    name, runs = _head(net)
    if not name:
        raise UsageError("The network is a single layer, which cannot be replaced in place: wrap it in nn.Sequential.")
    old = net.get_submodule(name)
    assert isinstance(old, KINDS)
    parent, _, child = name.rpartition(".")
    owner = net.get_submodule(parent)
    setattr(owner, child, _like(old, num_classes, seed))
    trace = probe(net, ())
    if runs and (trace is None or trace.output[-1] != num_classes):
        setattr(owner, child, old)
        raise UsageError(
            f"{type(net).__name__} has more than one head: replacing '{name}' does not change its output to {num_classes} "
            f"classes. Build it for them instead (kwargs={{num_classes: {num_classes}}})."
        )
    if isinstance(getattr(net, "num_classes", None), int):
        net.num_classes = num_classes  # pyright: ignore[reportArgumentType]


def replace_head_by_label(
    net: nn.Module, old_labels: Sequence[str], new_labels: Sequence[str], *, seed: int = 0
) -> tuple[str, ...]:
    """Replace the head of `net` (logits named `old_labels`) by one for `new_labels`; returns the labels carried over.

    Rows of labels in both lists keep their weights and bias, the others are drawn from `seed`. Raises `UsageError` for
    repeated labels or where `old_labels` do not count the old head's rows.
    """
    for labels in (old_labels, new_labels):
        if len(set(labels)) != len(labels):
            raise UsageError(f"labels repeat: {sorted({name for name in labels if list(labels).count(name) > 1})}")
    old = net.get_submodule(find_head(net))
    if _width(old) != len(old_labels):
        raise UsageError(f"the head has {_width(old)} rows and {len(old_labels)} labels were given for them")
    replace_head(net, len(new_labels), seed=seed)
    new = net.get_submodule(find_head(net))
    assert isinstance(old, KINDS)
    assert isinstance(new, KINDS)
    carried = tuple(name for name in new_labels if name in set(old_labels))
    rows_to = [list(new_labels).index(name) for name in carried]
    rows_from = [list(old_labels).index(name) for name in carried]
    with torch.no_grad():
        new.weight[rows_to] = old.weight[rows_from]
        if new.bias is not None and old.bias is not None:
            new.bias[rows_to] = old.bias[rows_from]
    return carried


def scale_head(net: nn.Module, factor: float) -> None:
    """Multiply the logits of `net` by `factor`, in place, by its head's weights and bias. Raises what `find_head` raises."""
    head = net.get_submodule(find_head(net))
    assert isinstance(head, KINDS)
    with torch.no_grad():
        head.weight.mul_(factor)
        if head.bias is not None:
            head.bias.mul_(factor)


def _head(net: nn.Module) -> tuple[str, bool]:
    """The head's name, and whether the network could be run to find it."""
    candidates = [name for name, module in net.named_modules() if _is_candidate(module)]
    trace = probe(net, KINDS)
    if trace is not None:
        allowed = set(candidates)
        width = trace.output[-1]
        called = [call.name for call in trace.calls if call.name in allowed and _width(net.get_submodule(call.name)) == width]
        candidates = list(dict.fromkeys(called))
    if not candidates:
        raise UsageError(
            f"{type(net).__name__} has no head: no linear layer or 1x1 convolution is as wide as its output. "
            "Wrap it in a module that ends in one."
        )
    return candidates[-1], trace is not None


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1) and module.groups == 1
    )


def _width(module: nn.Module) -> int:
    assert isinstance(module, KINDS)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _like(old: nn.Linear | nn.Conv2d, num_classes: int, seed: int) -> nn.Module:
    bias = old.bias is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, num_classes, bias=bias)
        else:
            new = nn.Conv2d(old.in_channels, num_classes, 1, bias=bias)
    return new.to(old.weight.device, old.weight.dtype).train(old.training)
