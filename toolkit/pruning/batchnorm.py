"""Fresh BatchNorm statistics for a pruned net, without labels and without training.

Pruning changes what every layer sees, and the running statistics still describe the unpruned net: most of the accuracy
that one-shot pruning seems to lose is lost here (EagleEye, Li et al., ECCV 2020). A plain average over a few batches
brings it back; comparing pruned nets before it reverses their ranking.

N images, C channels, H, W pixels.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.errors import UsageError


@torch.no_grad()
def reestimate_batchnorm(net: nn.Module, batches_NCHW: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm of `net` by their plain average over `batches_NCHW`.

    The batches are what `net` takes (normalised); those of one image are left out (they have no variance). Nothing else
    changes: dropout stays off, modes, momenta, affine parameters and frozen flags are as before. Returns the number of
    images used, 0 for a net without BatchNorm statistics. Raises `UsageError` when no batch is usable or one gives
    statistics that are not finite; the old statistics are then still in place.
    """
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None]
    if not norms:
        return 0
    modes = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: {key: buffer.clone() for key, buffer in norm.named_buffers(recurse=False)} for norm in norms}
    done = False
    try:
        net.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None
            norm.reset_running_stats()
        num_images = _run(net, batches_NCHW)
        _require_finite(net, norms)
        done = True
        return num_images
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
            if not done or int(norm.num_batches_tracked or 0) == 0:  # a branch that never ran keeps what it had
                for key, old in before[norm].items():
                    getattr(norm, key).copy_(old)
        for module, training in modes.items():
            module.training = training


def _run(net: nn.Module, batches_NCHW: Iterable[Tensor]) -> int:
    num_images = 0
    for images_NCHW in batches_NCHW:
        if len(images_NCHW) > 1:
            net(images_NCHW)
            num_images += len(images_NCHW)
    if not num_images:
        raise UsageError("BatchNorm statistics need at least one batch of two or more images; none was given.")
    return num_images


def _require_finite(net: nn.Module, norms: list[_BatchNorm]) -> None:
    for name, module in net.named_modules():
        if module in norms:
            total = float(module.running_mean.sum() + module.running_var.sum())  # pyright: ignore[reportCallIssue, reportArgumentType]
            if not math.isfinite(total):
                raise UsageError(f"The BatchNorm statistics of '{name}' are not finite: the images or the weights hold NaN.")
