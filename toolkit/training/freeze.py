"""Which parameters learn in a phase, and which modules are in training mode with them.

Freezing a parameter is not enough: a BatchNorm in training mode goes on averaging its statistics, and Dropout below the
first trainable layer goes on disturbing features that no one can adapt to. So a frozen part is in eval mode, and since
none of its parameters wants a gradient, autograd builds no graph for it.
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Stages = Sequence[Sequence[str]]


def parameters_by_stage(net: nn.Module, stages: Stages) -> list[list[tuple[str, nn.Parameter]]]:
    """The named parameters of each stage, input to output; what belongs to no stage counts as the first."""
    owner = {name: index for index, names in enumerate(stages) for name in names}
    grouped: list[list[tuple[str, nn.Parameter]]] = [[] for _ in stages]
    for name, parameter in net.named_parameters():
        path = name.split(".")
        prefixes = (".".join(path[:length]) for length in range(len(path), 0, -1))
        index = next((owner[prefix] for prefix in prefixes if prefix in owner), 0)
        grouped[index].append((name, parameter))
    return grouped


def unfreeze(net: nn.Module, stages: Stages, *, depth: int) -> None:
    """Let the head and the last `depth` stages below it learn (-1: everything), and nothing else."""
    grouped = parameters_by_stage(net, stages)
    first = 0 if depth < 0 else max(0, len(grouped) - 1 - depth)
    for index, named in enumerate(grouped):
        for _, parameter in named:
            parameter.requires_grad_(index >= first and parameter.is_floating_point())


def set_modes(net: nn.Module, *, head_only: bool, freeze_batchnorm: bool) -> None:
    """Put into training mode what may learn, into eval mode the rest.

    With `head_only` that is the modules that own a trainable parameter. Otherwise also the modules around them and the
    parameterless modules that come after the first of them (Dropout, stochastic depth). A BatchNorm without a trainable
    parameter stays in eval mode.
    """
    net.eval()
    reached = False
    for module in net.modules():
        own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        reached = reached or own
        below = any(parameter.requires_grad for parameter in module.parameters())
        bare = next(module.parameters(), None) is None
        if head_only:
            training = own
        elif isinstance(module, _BatchNorm):
            training = own and not freeze_batchnorm
        else:
            training = below or (bare and reached)
        module.training = training


def running_statistics(net: nn.Module) -> dict[str, Tensor]:
    """The statistics that the BatchNorms in training mode move, by name."""
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in net.named_modules()
        if isinstance(module, _BatchNorm) and module.training
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


@contextlib.contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Every module of `net` in eval mode for the length of the block, then each as it was."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def restored(net: nn.Module) -> Iterator[None]:
    """Give every parameter its `requires_grad` and every module its mode back after the block; gradients are dropped.

    Parameters go by name: pruning puts others in their place.
    """
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
