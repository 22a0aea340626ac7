"""Gradients at the weights that consume channels, batch by batch, for the criteria that look at data.

N images, C channels, H, W pixels, K classes.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from toolkit.errors import UsageError
from toolkit.pruning.groups import Group
from toolkit.pruning.surgery import tensor_owners


def consumer_gradients(
    net: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[tuple[Tensor, Tensor]],
    value: Callable[[Tensor, Tensor], Tensor],
    *,
    criterion: str,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For each batch, weight and gradient of `value(logits_NK, targets_N)` by tensor, where channels of `groups` are consumed.

    Works on a copy in eval mode: frozen parameters, gradients and modes of `net` stay as they are. Raises `UsageError`,
    naming the `criterion`, without batches.
    """
    if not batches:
        raise UsageError(
            f"The criterion '{criterion}' needs batches of images to rate channels; give some, or use 'magnitude'."
        )
    twin = copy.deepcopy(net).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    names = sorted({member.tensor for group in groups for member in group.members if member.consumes})
    owners = tensor_owners(twin)
    weights = [owners[name][0] for name in names]
    for images_NCHW, targets_N in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(value(twin(images_NCHW), targets_N), weights, allow_unused=True)
        found = zip(names, weights, gradients, strict=True)
        yield {name: (weight.detach(), gradient) for name, weight, gradient in found if gradient is not None}


def along_random_direction(logits_NK: Tensor, generator: torch.Generator) -> Tensor:
    """The logits times independent normal numbers, summed: the expected square of its change is that of all logits."""
    return (logits_NK * torch.randn(logits_NK.shape, generator=generator).to(logits_NK)).sum() / len(logits_NK) ** 0.5
