"""How a net is fitted: the settings of the objective and of the optimiser, checked once.

They are part of a bundle's recipe. What only says where and how fast it runs stands in `TrainerSpec`.
"""

from dataclasses import dataclass
from typing import Literal

from toolkit.data import AugmentSpec
from toolkit.errors import UsageError, unknown_name
from toolkit.training.metrics import METRICS


@dataclass(frozen=True)
class Distillation:
    """Learning from a teacher's softened logits (Hinton et al., 2015).

    The loss is `(1 - weight) * cross entropy + weight * temperature**2 * KL(teacher || student)`, both sides softened by
    `temperature`. `weight` lies in [0, 1]. `focus` makes a sample that the teacher has right count `1 + focus` times in the
    second term: with the model in service as teacher, its right answers are what the student must not lose (focal distillation
    of positive-congruent training, Yan et al., CVPR 2021, who take weight 0.9 and focus 5).
    """

    weight: float = 0.5
    temperature: float = 2.0
    focus: float = 0.0
    kind: Literal["KL"] = "KL"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UsageError(f"distillation.weight is {self.weight}; it is a share, in [0, 1]")
        if not self.temperature > 0:
            raise UsageError(f"distillation.temperature is {self.temperature}; it must be positive")
        if not self.focus >= 0:
            raise UsageError(f"distillation.focus is {self.focus}; it must be at least 0")
        if self.kind != "KL":
            raise unknown_name("distillation kind", self.kind, ["KL"])


@dataclass(frozen=True)
class FitOptions:
    """The settings of one fit.

    `batch_size` counts images over all processes; "auto" must be `settled` before a fit, because what fits depends on
    the machine and belongs to the recipe as a number. `mixup` and `cutmix` are the alpha of their Beta distribution (0: off).
    `ema_decay` 0 turns the weight average off. `class_weights`: True or "balanced" weighs classes by inverse frequency.
    `patience`: epochs without a better `monitor` before a phase ends early (None: never). `clip_norm`: the gradient's
    largest 2-norm (None: unlimited). `freeze_batchnorm` keeps every BatchNorm's statistics, also in unfrozen stages.
    """

    batch_size: int | Literal["auto"] = 64
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    class_weights: bool | Literal["balanced"] = False
    patience: int | None = None
    monitor: str = "balanced_accuracy"
    augment: AugmentSpec | None = None
    clip_norm: float | None = 1.0
    freeze_batchnorm: bool = False
    distillation: Distillation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and (isinstance(self.batch_size, str) or self.batch_size < 1):
            raise UsageError(f"batch_size is {self.batch_size}; it must be at least 1, or auto")
        if self.weight_decay < 0:
            raise UsageError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if min(self.mixup, self.cutmix) < 0:
            raise UsageError(f"mixup is {self.mixup} and cutmix {self.cutmix}; neither may be negative (0: off)")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1) (0: off)")
        if self.class_weights not in (True, False, "balanced"):
            raise UsageError(f"class_weights is {self.class_weights!r}; choose true, false or balanced")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience is {self.patience}; it must be at least 1 epoch, or null for no early stopping")
        if self.monitor not in METRICS:
            raise unknown_name("monitor", self.monitor, METRICS)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"clip_norm is {self.clip_norm}; it must be positive, or null for no clipping")

    @property
    def images_a_step(self) -> int:
        """The batch size as a number. Raises `UsageError` where it is still to be found."""
        if isinstance(self.batch_size, str):
            raise UsageError("batch_size is auto, and nothing has found it yet: call toolkit.training.settled first")
        return self.batch_size
