"""What a learner works with beside its net and its task, and the way it leaves when a signal asks for that."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from toolkit.training.checkpoint import Checkpoints
from toolkit.training.freeze import Stages
from toolkit.training.progress import Progress
from toolkit.training.signals import Signals
from toolkit.training.trainer import TrainerSpec


class Stopped(BaseException):
    """A signal asked for an end, and the state is saved."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a learner works with beside its net and its task.

    `stages` are the net's, the head last; `features` is the directory of what is computed once.
    """

    spec: TrainerSpec
    stages: Stages
    head: nn.Module
    checkpoints: Checkpoints
    features: Path
    signals: Signals
    progress: Progress
