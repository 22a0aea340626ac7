"""The training loops that are compared: ours, one written by hand, and Lightning as its tutorial shows it."""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from toolkit.bundle import Preprocessing
from toolkit.data import Normalise, Pixels
from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, fit
from toolkit.training.loggers import csv_file

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def random_pixels(num: int, size_px: int, *, num_classes: int = 10, seed: int = 0) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    images_NCHW = torch.randint(0, 256, (num, 3, size_px, size_px), generator=generator, dtype=torch.uint8)
    targets_N = torch.arange(num) % num_classes
    keys = tuple(f"{seed}/{index}" for index in range(num))
    return Pixels(images_NCHW, targets_N, keys, ("",) * num, tuple(str(k) for k in range(num_classes)))  # pyright: ignore[reportArgumentType]


def trained(
    net: nn.Module,
    train: Pixels,
    val: Pixels,
    spec: Preprocessing,
    *,
    epochs: int,
    trainer: TrainerSpec,
    depth: int,
    batch: int,
) -> None:
    """Ours, with loss, metrics, checkpoint, CSV and bar on."""
    with tempfile.TemporaryDirectory() as folder:
        schedule = Schedule("bench", (Phase(depth, epochs, 1e-3, augment=False),))
        options = FitOptions(batch_size=batch)
        fit(
            net,
            train=train,
            val=val,
            preprocessing=spec,
            schedule=schedule,
            options=options,
            trainer=trainer,
            run_dir=Path(folder),
            loggers=[csv_file],
        )


def by_hand(
    net: nn.Module,
    train: Pixels,
    spec: Preprocessing,
    *,
    epochs: int,
    batch: int,
    layout: Any,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    val: Pixels | None = None,
) -> None:
    """What a person would write who cares for speed and for nothing else: no metrics, no checkpoint, no log.

    With `val`, logits of its images after each epoch.
    """
    net = net.to(device).to(memory_format=layout).train()
    normalise = Normalise(spec).to(device)
    images_NCHW, targets_N = train.images_NCHW.to(device), train.targets_N.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        for indices_N in torch.randperm(len(train), device=device).split(batch):
            with torch.autocast(device, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(
                    net(normalise(images_NCHW[indices_N]).contiguous(memory_format=layout)), targets_N[indices_N]
                )
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if val is not None:
            net.eval()
            with torch.no_grad():
                for images in val.images_NCHW.split(batch):
                    net(normalise(images.to(device)).contiguous(memory_format=layout))
            net.train()


class OutOfTheBox(L.LightningModule):
    """Lightning as its tutorial shows it: two logs and a metric a step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.right, self.val_right = net, MulticlassAccuracy(10), MulticlassAccuracy(10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, targets)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", self.right(logits, targets), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self.log("val_accuracy", self.val_right(self.net(images), targets), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=1e-3)


def out_of_the_box(net: nn.Module, train: Pixels, val: Pixels, spec: Preprocessing, *, epochs: int, batch: int) -> None:
    normalise = Normalise(spec)
    sets = [TensorDataset(normalise(pixels.images_NCHW), pixels.targets_N) for pixels in (train, val)]
    loaders = [DataLoader(data, batch_size=batch, shuffle=index == 0) for index, data in enumerate(sets)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, logger=CSVLogger(folder), default_root_dir=folder)
        trainer.fit(OutOfTheBox(net), *loaders)
