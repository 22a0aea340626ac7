"""Training: one LightningModule over any net, phases that unfreeze it, and runs that can be killed and continued."""

from toolkit.data import AugmentSpec
from toolkit.training.batch_size import settled
from toolkit.training.fit import FitResult, fit
from toolkit.training.guard import Diverged
from toolkit.training.options import Distillation, FitOptions
from toolkit.training.pruning import Pruning
from toolkit.training.schedule import Phase, Schedule, full, gradual, linear_probe
from toolkit.training.signals import Interrupted, Terminated
from toolkit.training.trainer import TrainerSpec

__all__ = [
    "AugmentSpec",
    "Distillation",
    "Diverged",
    "FitOptions",
    "FitResult",
    "Interrupted",
    "Phase",
    "Pruning",
    "Schedule",
    "Terminated",
    "TrainerSpec",
    "fit",
    "full",
    "gradual",
    "linear_probe",
    "settled",
]
