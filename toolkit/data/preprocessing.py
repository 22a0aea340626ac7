"""From an image to what a network takes, by one spec, in two steps: `render` (on the CPU, uint8), `Normalise` (in the model).

The border between the two is the contract of every exported model: float pixels 0..255 at the model's size. Decoding and
resizing stay outside the graph, exact to PIL; scaling, mean and standard deviation are inside, where nobody can forget them.

Shapes: N batch, C channels, H height, W width.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from toolkit.bundle import Preprocessing
from toolkit.data.decoding import decode
from toolkit.data.stored import Source
from toolkit.errors import UsageError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render(source: Source | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """The pixels a model sees: uint8 (H, W, C) at `preprocessing.size_px`, decoded, upright, converted, resized, cropped.

    Sizes and offsets round as in torchvision and timm, so their checkpoints see the pixels they were trained on.
    Raises `InputRefused` for an image that is damaged, too large or not 8-bit.
    """
    image = decode(source)
    if preprocessing.colour == "L" and image.mode != "L":
        image = image.convert("L")
    height_px, width_px = preprocessing.size_px
    if preprocessing.resize == "crop":
        image = _centre_crop(_resized(image, _covering_size(image, preprocessing), preprocessing), height_px, width_px)
    else:
        image = _resized(image, (height_px, width_px), preprocessing)
    pixels = np.array(image.convert(preprocessing.colour))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decoded(source: Source | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """The whole image as a caller hands it to a graph that resizes: uint8 (H, W, C), upright, in the spec's colour mode.

    Raises `InputRefused` as `render` does.
    """
    pixels = np.array(decode(source).convert(preprocessing.colour))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _covering_size(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    target_height, target_width = (
        int(side / preprocessing.crop_fraction + 1e-6) for side in preprocessing.size_px
    )  # 240 / (240 / 255) is 254.99999999999997
    if target_height * image.width >= target_width * image.height:
        return target_height, max(target_width, int(target_height * image.width / image.height))
    return max(target_height, int(target_width * image.height / image.width)), target_width


def _centre_crop(image: Image.Image, height_px: int, width_px: int) -> Image.Image:
    top, left = round((image.height - height_px) / 2), round((image.width - width_px) / 2)
    return image.crop((left, top, left + width_px, top + height_px))


def _resized(image: Image.Image, size_px: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    height_px, width_px = size_px
    if (image.height, image.width) == (height_px, width_px):
        return image
    if preprocessing.antialias or preprocessing.interpolation == "nearest":
        return image.resize((width_px, height_px), _FILTERS[preprocessing.interpolation])
    if preprocessing.interpolation == "lanczos":
        raise UsageError(
            "interpolation lanczos exists with antialias: true only; choose bilinear or bicubic for antialias: false."
        )
    pixels = np.array(image)
    pixels_1CHW = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None].float()
    resized_1CHW = nn.functional.interpolate(pixels_1CHW, size=size_px, mode=preprocessing.interpolation, align_corners=False)
    resized_HWC = resized_1CHW[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(resized_HWC.squeeze(-1).numpy() if image.mode == "L" else resized_HWC.numpy())


class Normalise(nn.Module):
    """Pixels 0..255 to what the network was trained on: scaled to `value_range`, minus `mean`, over `std`, per channel.

    The constants are buffers that no state dict holds: they belong to the preprocessing, not to the weights.
    """

    mean_C11: Tensor
    inverse_std_C11: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        low, high = preprocessing.value_range
        pixels_per_unit = 255.0 / (high - low)
        mean_C = (torch.tensor(tuple(preprocessing.mean), dtype=torch.float64) - low) * pixels_per_unit
        std_C = torch.tensor(tuple(preprocessing.std), dtype=torch.float64) * pixels_per_unit
        self.register_buffer("mean_C11", mean_C.float()[:, None, None], persistent=False)
        self.register_buffer("inverse_std_C11", (1 / std_C).float()[:, None, None], persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Float or uint8 pixels 0..255 (N, C, H, W) to normalised values of the buffers' type (float32 unless moved).

        Raises `ValueError` for another number of channels (one would otherwise broadcast to three without a word).
        """
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != self.mean_C11.shape[0]:
            raise ValueError(
                f"expected pixels of shape (N, {self.mean_C11.shape[0]}, H, W), got {tuple(images_NCHW.shape)}; "
                "render images with the same preprocessing."
            )
        return (images_NCHW.to(self.mean_C11.dtype) - self.mean_C11) * self.inverse_std_C11
