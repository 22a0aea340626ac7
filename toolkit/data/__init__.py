"""Images in, pixels out: the one place where image files become tensors."""

from toolkit.data.audit import Audit, audit, require_sound
from toolkit.data.augment import Augment, AugmentSpec, draws_NK
from toolkit.data.images import SPLITS, ImageSet, Sample
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocessing import Normalise, render
from toolkit.data.sampler import Batches, EpochSampler

__all__ = [
    "SPLITS",
    "Audit",
    "Augment",
    "AugmentSpec",
    "Batches",
    "EpochSampler",
    "ImageSet",
    "Normalise",
    "Pixels",
    "Sample",
    "audit",
    "draws_NK",
    "load_pixels",
    "render",
    "require_sound",
]
