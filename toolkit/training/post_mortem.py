"""What a step that was not finite died of: its batch is kept for replay, and the first module that failed is named.

The weights are those the step began with (the guard saw to that), so the step can be run again, this time with a look at
every module's output and, when all of them are finite, at every gradient.

Shapes: N samples, K classes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from toolkit.bundle.atomic import write_atomic
from toolkit.training.feed import Feed, ImageFeed, Moment
from toolkit.training.loss import Objective, Targets
from toolkit.training.sharding import is_sharded
from toolkit.training.transfer import Indices


def post_mortem(
    net: nn.Module, feed: Feed, objective: Objective, batch: Indices, *, moment: Moment, keys: Sequence[str], path: Path
) -> str:
    """Sentences on the first module that was not finite and on where the batch lies.

    `path` plus `.safetensors` receives what the net (or the head) was given, after augmentation, with the targets; `path` plus
    `.json` the step, the images' `keys` and the finding. Call it in the autocast context of the step. A sharded net is not
    searched, and nothing is written.
    """
    if is_sharded(net):  # a process that found something would leave the others waiting for it
        return "The module at fault is not searched for in a sharded net: trainer=ddp does that. "
    if isinstance(feed, ImageFeed):
        feed.net = net  # hooks do not reach into a compiled net
    with _statistics_kept(net):
        inputs, targets = feed.compose(batch, moment=moment)
        finding = _finding(net, inputs, lambda: _mean_loss(feed, objective, batch, moment))
    write_atomic(Path(f"{path}.safetensors"), save(_tensors(inputs, targets, batch)))
    facts = {"step": moment.step + 1, "epoch": moment.epoch + 1, "finding": finding}
    named = [keys[index] for index in batch.host_N.tolist()]
    write_atomic(Path(f"{path}.json"), json.dumps({**facts, "images": named}, indent=1).encode())
    return f"{finding} Its batch is kept in {path}.safetensors, the names of its images in {path}.json. "


def _finding(net: nn.Module, inputs: Tensor, loss: Callable[[], Tensor]) -> str:
    if not _finite(inputs):
        return "The batch itself is not finite before any module sees it."
    for parameter in net.parameters():
        parameter.grad = None
    with torch.enable_grad(), _watched(net) as (called, failed):
        total = loss()
        if failed:
            name, module = failed[0]
            return f"The first module whose output is not finite is {_named(name, module)}."
        if not _finite(total):
            return "Every module's output is finite, but the loss is not."
        total.backward()
    for name, module in reversed(called):
        if any(p.grad is not None and not _finite(p.grad) for p in module.parameters(recurse=False)):
            return f"Outputs and loss are finite; the first gradient that is not is that of {_named(name, module)}."
    return "Run again, the step was finite: its random part (dropout) or the device differs from run to run."


@contextmanager
def _watched(net: nn.Module) -> Iterator[tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]]]:
    """The modules in the order they return, and those of them that return something not finite from finite inputs."""
    called: list[tuple[str, nn.Module]] = []
    failed: list[tuple[str, nn.Module]] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            called.append((name, module))
            if not _finite(output):
                failed.append((name, module))

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules()]
    try:
        yield called, failed
    finally:
        for handle in handles:
            handle.remove()


def _mean_loss(feed: Feed, objective: Objective, batch: Indices, moment: Moment) -> Tensor:
    found = feed.train(batch, moment=moment)
    terms_T, weights_T = objective(found.logits_NK, found.targets, found.teacher_NK)
    return (terms_T / weights_T).sum()


def _finite(values: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _named(name: str, module: nn.Module) -> str:
    return f"'{name}' ({type(module).__name__})" if name else f"the net itself ({type(module).__name__})"


def _tensors(inputs: Tensor, targets: Targets, batch: Indices) -> dict[str, Tensor]:
    found = {"inputs": inputs, "indices_N": batch.host_N, "targets_N": targets.first_N}
    if targets.second_N is not None and targets.share_N is not None:
        found |= {"second_targets_N": targets.second_N, "share_N": targets.share_N}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


@contextmanager
def _statistics_kept(net: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
