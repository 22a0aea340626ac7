"""The training objective: cross entropy with smoothing and class weights, mixed targets, and a teacher's softened logits.

Losses come as sums, with their normalisers apart: a process that holds a part of the batch then contributes exactly its
part, and the gradient does not depend on how many processes share the batch.

Shapes: N samples, K classes, T terms (hard targets, and the teacher where there is one).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.training.options import Distillation, FitOptions


@dataclass(frozen=True, eq=False)
class Targets:
    """What the samples of a batch are: `first_N` alone, or the share `share_N` of `first_N` and the rest of `second_N`."""

    first_N: Tensor
    second_N: Tensor | None = None
    share_N: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of one fit; `weight_K` weighs the classes (mean over the samples: 1) or is None."""

    label_smoothing: float
    weight_K: Tensor | None
    distillation: Distillation | None

    def __call__(self, logits_NK: Tensor, targets: Targets, teacher_NK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The batch's summed loss terms_T and weights_T, what each is divided by once that is summed over the processes."""
        logits_NK = logits_NK.float()
        loss_N, weight_N = self._cross_entropy(logits_NK, targets.first_N)
        if targets.second_N is not None and targets.share_N is not None:
            other_N, other_weight_N = self._cross_entropy(logits_NK, targets.second_N)
            loss_N = torch.lerp(other_N, loss_N, targets.share_N)
            weight_N = torch.lerp(other_weight_N, weight_N, targets.share_N)
        if self.distillation is None or teacher_NK is None:
            return loss_N.sum()[None], weight_N.sum()[None]
        share = self.distillation.weight
        soft_N = divergence(logits_NK, teacher_NK, temperature=self.distillation.temperature)
        soft = (soft_N * (1 + self.distillation.focus * _share_right(teacher_NK, targets))).sum()
        terms_T = torch.stack([(1 - share) * loss_N.sum(), share * soft])
        return terms_T, torch.stack([weight_N.sum(), torch.ones_like(weight_N).sum()])

    def _cross_entropy(self, logits_NK: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        loss_N = F.cross_entropy(
            logits_NK, targets_N, weight=self.weight_K, label_smoothing=self.label_smoothing, reduction="none"
        )
        weight_N = torch.ones_like(loss_N) if self.weight_K is None else self.weight_K[targets_N]
        return loss_N, weight_N


def objective(options: FitOptions, targets_N: Tensor, num_classes: int, device: torch.device) -> Objective:
    """The loss that `options` ask for, with its class weights (of the training `targets_N`) on `device`."""
    weighted = options.class_weights is not False
    weight_K = balanced_weights(targets_N, num_classes).to(device) if weighted else None
    return Objective(options.label_smoothing, weight_K, options.distillation)


def _share_right(teacher_NK: Tensor, targets: Targets) -> Tensor:
    """How much of each sample's target the teacher has right (N,): 0 or 1, or the share of the one it names."""
    answers_N = teacher_NK.argmax(1)
    right_N = (answers_N == targets.first_N).float()
    if targets.second_N is None or targets.share_N is None:
        return right_N
    return torch.lerp((answers_N == targets.second_N).float(), right_N, targets.share_N)


def divergence(logits_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """`temperature**2 * KL(teacher || student)` per sample, both softened by `temperature` (Hinton et al., 2015)."""
    student_NK = F.log_softmax(logits_NK / temperature, dim=1)
    teacher_NK = F.log_softmax(teacher_NK.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student_NK, teacher_NK, reduction="none", log_target=True).sum(1)


def balanced_weights(targets_N: Tensor, num_classes: int) -> Tensor:
    """Weights_K inversely proportional to class frequency, with mean 1 over the samples; an absent class gets 0."""
    count_K = torch.bincount(targets_N, minlength=num_classes).float()
    present = int((count_K > 0).sum())
    return torch.where(count_K > 0, len(targets_N) / (present * count_K.clamp(min=1)), 0.0)
