"""Real architectures at small sizes, with the BatchNorm statistics of real photographs: what parity is tried on.

With random weights and no statistics of real images a deep network is so ill-conditioned that float32 itself is far from
float64, and nothing can be said about its graph.

N images, C channels, H height, W width.
"""

import functools
from importlib import resources

import numpy as np
import torch
from PIL import Image

from toolkit.bundle import Architecture, Preprocessing
from toolkit.models import Deployed, build
from toolkit.pruning.batchnorm import reestimate_batchnorm

NUM_CALIBRATION = 64


@functools.cache
def photos_NCHW(size_px: int, num_images: int = NUM_CALIBRATION) -> np.ndarray:  # noqa: N802
    """Square crops at random places of the two colour photographs that scikit-learn ships, float32 pixels 0..255."""
    random = np.random.default_rng(0)
    folder = resources.files("sklearn.datasets") / "images"
    photos = [Image.open(str(folder / name)).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    crops = []
    for index in range(num_images):
        photo = photos[index % len(photos)]
        side = int(random.integers(160, min(photo.size)))
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        crops.append(photo.crop((left, top, left + side, top + side)).resize((size_px, size_px), Image.Resampling.BICUBIC))
    return np.stack([np.asarray(crop, np.float32).transpose(2, 0, 1) for crop in crops])


def calibrated(key: str, size_px: int, *, num_classes: int = 1000, num_images: int = NUM_CALIBRATION) -> Deployed:
    """The model `key` behind its preprocessing, with random weights (seed 0) and BatchNorm statistics of `photos_NCHW`."""
    torch.manual_seed(0)
    kwargs: dict[str, int] = {"num_classes": num_classes}
    if key.startswith("torchvision/vit_"):
        kwargs["image_size"] = size_px
    deployed = Deployed(build(Architecture(key, kwargs)), Preprocessing((size_px, size_px)))
    batches = torch.from_numpy(photos_NCHW(size_px)[:num_images]).split(32)
    reestimate_batchnorm(deployed.net, (deployed.normalise(batch) for batch in batches))
    return deployed.eval()
