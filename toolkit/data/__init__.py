"""Images in, pixels out: the one place where image files become tensors."""

from toolkit.data.audit import Audit, audit, require_sound
from toolkit.data.augment import Augment, AugmentSpec, draws_NK
from toolkit.data.images import SPLITS, ImageSet, Sample
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.placing import decoded_pixels, place_pixels
from toolkit.data.preprocessing import Normalise, decoded, render
from toolkit.data.sampler import Batches, EpochSampler
from toolkit.data.shard_order import ShardOrder, Shuffle
from toolkit.data.undecoded import Images, Undecoded

__all__ = [
    "SPLITS",
    "Audit",
    "Augment",
    "AugmentSpec",
    "Batches",
    "EpochSampler",
    "ImageSet",
    "Images",
    "Normalise",
    "Pixels",
    "Sample",
    "ShardOrder",
    "Shuffle",
    "Undecoded",
    "audit",
    "decoded",
    "decoded_pixels",
    "draws_NK",
    "load_pixels",
    "place_pixels",
    "render",
    "require_sound",
]
