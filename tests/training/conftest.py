"""A toy that trains in a second: three classes told apart by which colour channel is bright."""

import functools
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.children import Child
from toolkit.bundle import Preprocessing
from toolkit.data import Pixels
from toolkit.training import AugmentSpec, FitOptions, FitResult, Phase, Schedule, TrainerSpec, fit

PREPROCESSING = Preprocessing(size_px=(16, 16))
CPU = TrainerSpec(accelerator="cpu")


def make_pixels(num_samples: int, *, seed: int = 0, num_classes: int = 3) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    targets_N = torch.randint(0, num_classes, (num_samples,), generator=generator)
    images_NCHW = torch.randint(0, 140, (num_samples, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images_NCHW[torch.arange(num_samples), targets_N, 4:] += 50
    return Pixels(
        images_NCHW=images_NCHW,
        targets_N=targets_N,  # pyright: ignore[reportArgumentType]
        keys=tuple(f"{seed}/{index}" for index in range(num_samples)),
        slices=("",) * num_samples,
        labels=tuple("abc"[:num_classes]),
    )


def make_net(*, num_classes: int = 3, seed: int = 0) -> nn.Module:
    """Two convolution blocks with BatchNorm, Dropout and a linear head."""
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, num_classes))


@pytest.fixture(scope="session")
def train() -> Pixels:
    return make_pixels(100)


@pytest.fixture(scope="session")
def val() -> Pixels:
    return make_pixels(60, seed=1)


@pytest.fixture(scope="session")
def everything() -> tuple[Schedule, FitOptions]:
    """A schedule with every kind of phase, and options with everything on that a resumed run could get wrong."""
    phases = (Phase(0, 3, 3e-3, augment=False), Phase(1, 3, 2e-3, 0.5), Phase(-1, 4, 2e-3, 0.5))
    options = FitOptions(
        batch_size=16,
        ema_decay=0.9,
        mixup=0.3,
        cutmix=1.0,
        augment=AugmentSpec(),
        class_weights="balanced",
        label_smoothing=0.1,
        patience=2,
        seed=3,
    )
    return Schedule("everything", phases), options


Fit = Callable[..., FitResult]


@pytest.fixture
def run(train: Pixels, val: Pixels, tmp_path: Path) -> Fit:
    """`fit` on the toy; keywords replace what it is given."""

    def fitted(net: nn.Module, **changes: object) -> FitResult:
        settings: dict = {
            "train": train,
            "val": val,
            "preprocessing": PREPROCESSING,
            "schedule": Schedule("short", (Phase(-1, 2, 2e-3),)),
            "options": FitOptions(batch_size=16),
            "trainer": CPU,
            "run_dir": tmp_path / "run",
        }
        return fit(net, **(settings | changes))

    return fitted


def in_child(
    settings: dict, *, folder: Path, number: int, when: Callable[[], bool], timeout_s: float = 120, **changes: object
) -> int:
    """Train the toy by `settings` in a process of its own, send it the signal `number` as soon as `when()` holds; its code."""
    (folder / "settings.pkl").write_bytes(pickle.dumps(settings | changes))
    child = Child(CHILD, folder)
    end_s = time.monotonic() + timeout_s
    try:
        while not when():
            assert child.poll() is None, f"the child ended by itself with {child.poll()}: {child.stderr}"
            assert time.monotonic() < end_s, "the child never came so far"
            time.sleep(0.002)
        child.send_signal(number)
        return child.wait(timeout_s)
    finally:
        child.kill()


CHILD = """
import pickle, sys
from pathlib import Path
from tests.training.conftest import PREPROCESSING, make_net, make_pixels
from toolkit.training import fit

settings = pickle.loads(Path(sys.argv[1], "settings.pkl").read_bytes())
try:
    fit(make_net(), train=make_pixels(100), val=make_pixels(60, seed=1), preprocessing=PREPROCESSING, **settings)
except KeyboardInterrupt:
    sys.exit(130)
"""


class Toy:
    """What the tests build runs from."""

    CPU = CPU
    PHASE = Phase(-1, 2, 2e-3)
    PREPROCESSING = PREPROCESSING
    net = staticmethod(make_net)
    pixels = staticmethod(make_pixels)
    in_child = staticmethod(in_child)
    fit = staticmethod(functools.partial(fit, preprocessing=PREPROCESSING))


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy
