"""AdamW with a learning rate for each stage, and the course of that rate over a phase.

The fused implementation steps about four times as fast as the others and can be told on the device, without a host
synchronisation, to leave the weights alone (`found_inf`).
"""

import math

import torch
from torch import Tensor, nn

from toolkit.training import processes
from toolkit.training.freeze import Stages, parameters_by_stage
from toolkit.training.schedule import Phase


def build_optimiser(net: nn.Module, stages: Stages, phase: Phase, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `net`, in groups by stage; each group's `peak_lr` is its highest rate.

    A stage at distance d from the head gets `phase.lr * phase.lr_decay**d`. Biases and norm parameters (one dimension or
    none) are not decayed.
    """
    groups = []
    for distance, named in enumerate(reversed(parameters_by_stage(net, stages))):
        lr = phase.lr * phase.lr_decay**distance
        trainable = [parameter for _, parameter in named if parameter.requires_grad]
        matrices, vectors = [p for p in trainable if p.dim() > 1], [p for p in trainable if p.dim() <= 1]
        for members, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if members:
                groups.append({"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay})
    optimiser = torch.optim.AdamW(groups, fused=True)
    if all(p.device.type == "cpu" for group in groups for p in group["params"]):
        # At each step it would ask the driver whether a CUDA graph is being recorded, which without a GPU means looking for
        # the driver's library on the disk: a third of a small step. (The name before torch 2.12 was the second.)
        for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            setattr(optimiser, check, lambda: None)
    return optimiser


def rate_factor(step: int, *, num_steps: int, warmup: float) -> float:
    """The share of the peak rate at `step` of a phase: a linear rise, then a half cosine to zero (SGDR, 2017)."""
    num_warmup = round(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Let every group learn at `factor` times its peak rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor


@torch.no_grad()
def clip(gradients: list[Tensor], *, norm: float | None, parts: bool = False) -> Tensor:
    """Scale `gradients` in place to a 2-norm of at most `norm` together (None: as they are); returns the norm before.

    `parts`: each process holds a part of every gradient, and the norm is that of the whole.
    """
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if parts:
        square = total.square()
        processes.sum_in_place([square])
        total = square.sqrt()
    if norm is not None:
        torch._foreach_mul_(gradients, torch.clamp(norm / (total + 1e-6), max=1.0))
    return total
