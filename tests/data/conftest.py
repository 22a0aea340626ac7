"""Image files as users have them, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth, asymmetric RGB picture, uint8 (40, 60, 3): its corners differ, so turns and flips show."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack((x * 4, y * 6, (x + y) * 2), axis=2).astype(np.uint8)


@pytest.fixture
def class_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `num` distinct PNGs for each class into `<root>/<class>/` and returns the root."""

    def write(classes: tuple[str, ...] = ("cat", "dog"), num: int = 10, root: Path | None = None, start: int = 0) -> Path:
        root = root or tmp_path / "pets"
        for c, name in enumerate(classes):
            directory = root / name
            directory.mkdir(parents=True, exist_ok=True)
            for i in range(num):
                pixels = np.random.default_rng((c, i + start)).integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{name}{i + start:03d}.png")
        return root

    return write
