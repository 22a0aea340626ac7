"""What the tests of the stage prune share: quick settings, and a net whose findings can be foreseen."""

import torch
from torch import nn

from toolkit.pruning import PruneOptions
from toolkit.stages.prune import Recovery
from toolkit.training import Distillation, FitOptions, TrainerSpec, full

OPTIONS = PruneOptions(num_batches=2, batch_size=8, bn_images=32)
RECOVERY = Recovery(
    schedule=full(epochs=1, lr=1e-3),
    options=FitOptions(batch_size=16, distillation=Distillation()),
    trainer=TrainerSpec(accelerator="cpu"),
)


class Drifting(nn.Module):
    """Scales what passes by how many training steps it has seen, and does not save the count."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return x * (1 + self.seen)


def forgetful(num_classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), Drifting(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(32, num_classes))
