"""When which part of a net learns: schedules, made of phases.

A phase trains the last stages of a net for some epochs with one warm-up and one cosine decay of its own; the next phase
starts from the best weights so far. Gradual unfreezing and learning rates that fall towards the input follow ULMFiT
(Howard and Ruder, ACL 2018); training the head first keeps a random head from tearing up the features below it (Kumar et
al., ICLR 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """Some epochs of training with one set of stages unfrozen.

    `depth`: 0 trains the head alone, k also the last k stages below it, -1 everything. `lr` is the head's peak learning
    rate; each stage further from the head takes `lr_decay` times the rate of the one above. `warmup` is the share of the
    phase's steps over which the rate rises linearly; then it falls to zero by a half cosine. `augment=False` shows the
    images as they are (no augmentation, mixup or cutmix), which lets a phase compute once what its frozen part gives. So does
    a fixed number of `views`: each image is varied in so many ways, in turn by epoch, and not mixed (0: anew every epoch).
    """

    depth: int
    epochs: int
    lr: float
    lr_decay: float = 1.0
    warmup: float = 0.1
    augment: bool = True
    views: int = 0

    def __post_init__(self) -> None:
        if self.views < 0 or (self.views and not self.augment):
            raise UsageError(f"views is {self.views} with augment={self.augment}; use 0, or a number of augmented views")
        if self.depth < -1:
            raise UsageError(f"depth is {self.depth}; use 0 for the head, k for the last k stages too, -1 for all")
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}; a phase needs at least 1")
        if not self.lr > 0:
            raise UsageError(f"lr is {self.lr}; it must be positive (in YAML write 1e-4 as 1.0e-4)")
        if not 0 < self.lr_decay <= 1:
            raise UsageError(f"lr_decay is {self.lr_decay}; it must lie in (0, 1]")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is {self.warmup}; it is a share of the steps, in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """The phases of one training, in order."""

    name: str
    phases: Sequence[Phase]

    def __post_init__(self) -> None:
        if len(self.phases) == 0:
            raise UsageError(f"schedule '{self.name}' has no phases")

    @property
    def num_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)


def linear_probe(*, epochs: int = 40, lr: float = 3e-3, warmup: float = 0.1, views: int = 0) -> Schedule:
    """Train the head alone, on unaugmented images or so many augmented views: seconds once the features are computed."""
    return Schedule("linear_probe", (Phase(0, epochs, lr, warmup=warmup, augment=views > 0, views=views),))


def gradual(
    *,
    epochs: int = 4,
    lr: float = 5e-4,
    lr_decay: float = 0.7,
    depths: Sequence[int] = (2, -1),
    head_epochs: int = 30,
    head_lr: float = 3e-3,
    head_views: int = 0,
    warmup: float = 0.1,
) -> Schedule:
    """Train the head, then unfreeze by stage: one phase of `epochs` for each of `depths`, each gentler below the head."""
    head = Phase(0, head_epochs, head_lr, warmup=warmup, augment=head_views > 0, views=head_views)
    return Schedule("gradual", (head, *(Phase(depth, epochs, lr, lr_decay, warmup) for depth in depths)))


def full(*, epochs: int = 20, lr: float = 1e-3, lr_decay: float = 1.0, warmup: float = 0.1) -> Schedule:
    """Train every parameter from the first step on: retraining, or recovery after pruning."""
    return Schedule("full", (Phase(-1, epochs, lr, lr_decay, warmup),))
