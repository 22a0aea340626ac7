"""Images in, pixels out: the one place where image files become tensors."""

from toolkit.data.images import SPLITS, ImageSet, Sample
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocessing import Normalise, render

__all__ = ["SPLITS", "ImageSet", "Normalise", "Pixels", "Sample", "load_pixels", "render"]
