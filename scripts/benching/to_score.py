"""Seconds until a validation score is reached on real images: ours against Lightning as its tutorial shows it.

Both get a pretrained EfficientNet-Lite0, the same cells, sizes, batches, learning rates and the same plan: the head alone, then
everything. What differs is what each does with it: Lightning decodes with PIL every epoch and runs the frozen backbone again.

N images, C channels, H, W pixels.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from benching.pruned import TF, lite0
from benching.turns import clock
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from toolkit.bundle import Preprocessing
from toolkit.data import ImageSet, load_pixels
from toolkit.data.decoding import decode
from toolkit.data.elpv import elpv
from toolkit.models import find_head
from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, fit
from toolkit.training.loggers import csv_file

SPEC = Preprocessing(size_px=(64, 64), resize="squash", **TF)
HEAD_EPOCHS, EPOCHS, HEAD_LR, LR, BATCH = 10, 2, 3e-3, 4e-4, 32
Curve = list[tuple[float, float]]  # (seconds since the start, balanced accuracy on the validation split), an epoch each


def curves() -> dict[str, Callable[[], Curve]]:
    """The contenders; each trains a net of its own from the same start."""
    data, start = elpv(), lite0(2)
    return {"ours": lambda: _ours(copy.deepcopy(start), data), "lightning": lambda: _lightning(copy.deepcopy(start), data)}


def seconds_to(curve: Curve, score: float) -> float:
    """When the curve first reaches `score`; infinite where it does not."""
    return next((seconds for seconds, reached in curve if reached >= score), float("inf"))


def _ours(net: nn.Module, data: ImageSet) -> Curve:
    started, curve = clock(), []

    class Stamp(_Quiet):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            curve.append((clock() - started, metrics["balanced_accuracy"]))

    train, val = (load_pixels(data.split(split), SPEC) for split in ("train", "val"))
    phases = (Phase(0, HEAD_EPOCHS, HEAD_LR, augment=False), Phase(-1, EPOCHS, LR, augment=False))
    with tempfile.TemporaryDirectory() as folder:
        fit(
            net,
            train=train,
            val=val,
            preprocessing=SPEC,
            schedule=Schedule("bench", phases),
            options=FitOptions(batch_size=BATCH),
            trainer=TrainerSpec(accelerator="cpu"),
            run_dir=Path(folder),
            loggers=[csv_file, lambda _: Stamp()],
        )
    return curve


def _lightning(net: nn.Module, data: ImageSet) -> Curve:
    started, curve = clock(), []

    class Stamp(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if not trainer.sanity_checking:
                curve.append((clock() - started, float(trainer.callback_metrics["val_balanced_accuracy"])))

    loaders = [DataLoader(Cells(data.split(split)), BATCH, shuffle=split == "train") for split in ("train", "val")]
    head = net.get_submodule(find_head(net))
    for epochs, lr, parameters in ((HEAD_EPOCHS, HEAD_LR, head), (EPOCHS, LR, net)):
        net.requires_grad_(False)
        parameters.requires_grad_(True)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="cpu", max_epochs=epochs, logger=CSVLogger(folder), default_root_dir=folder, callbacks=[Stamp()]
            )
            trainer.fit(Tutorial(net, lr), loaders[0], loaders[1])
    return curve


class Cells(Dataset[tuple[Tensor, int]]):
    """The cells as torchvision's tutorials read them: PIL, resize, tensor, normalise."""

    def __init__(self, data: ImageSet) -> None:
        self.samples = data.samples
        self.transform = T.Compose([T.Resize(list(SPEC.size_px)), T.ToTensor(), T.Normalize(SPEC.mean, SPEC.std)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        return self.transform(decode(sample.source).convert("RGB")), sample.target


class Tutorial(L.LightningModule):
    """A loss and two metrics, logged."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.right, self.val_balanced = MulticlassAccuracy(2, average="micro"), MulticlassAccuracy(2, average="macro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images_NCHW, targets_N = batch
        logits_NK = self.net(images_NCHW)
        loss = F.cross_entropy(logits_NK, targets_N)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", self.right(logits_NK, targets_N), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images_NCHW, targets_N = batch
        self.val_balanced(self.net(images_NCHW), targets_N)
        self.log("val_balanced_accuracy", self.val_balanced, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class _Quiet(Logger):
    @property
    def name(self) -> str:
        return "stamps"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
