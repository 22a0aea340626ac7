"""Training-time augmentation of a whole batch on its device, with a draw of its own for every image.

torchvision's v2 transforms draw one set of parameters for a batched tensor, so that all images of a batch are flipped
together; here each image has its own. Flips and shifts are one gather of uint8 pixels (exact, no interpolation). The draws
come either from an explicit generator, whose state a checkpoint can hold, or from `draws_NK`: a hash of seed, epoch and
image, which repeats whatever the order, the batch size, the number of processes or the point of resuming.

Shapes: N batch, C channels, H height, W width, K draws an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UsageError

NUM_DRAWS = 8


@dataclass(frozen=True)
class AugmentSpec:
    """How far images are varied. Probabilities of flips in 0..1; the others are the largest change, drawn uniformly.

    `shift`: share of the side in either direction, whole pixels, edges mirrored (0..0.5). `zoom`: 0.1 scales by 0.9 to 1.1
    (0..0.5). `rotate_degrees`: either way (0..180). `brightness`: 0.1 multiplies by 0.9 to 1.1 (0..1). `contrast`: likewise,
    about each image's mean (0..1).
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    shift: float = 0.08
    zoom: float = 0.0
    rotate_degrees: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.1

    def __post_init__(self) -> None:
        limits = {"horizontal_flip": 1, "vertical_flip": 1, "shift": 0.5, "zoom": 0.5, "brightness": 1, "contrast": 1}
        for name, limit in {**limits, "rotate_degrees": 180}.items():
            if not 0 <= getattr(self, name) <= limit:
                raise UsageError(f"augment.{name} is {getattr(self, name)}; it must lie in 0..{limit}.")


def draws_NK(indices_N: Tensor, *, seed: int, epoch: int) -> Tensor:  # noqa: N802
    """Uniform draws in [0, 1), float32 (N, `NUM_DRAWS`), that depend on the image's index, the seed and the epoch alone.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over a counter, in wrapping int64 arithmetic.
    """
    base = _mix_integer(_mix_integer(seed) + epoch)  # on the host, as a number: nothing waits for the device
    counters = torch.arange(NUM_DRAWS, device=indices_N.device, dtype=torch.int64)
    mixed_NK = _mix(_mix(indices_N.to(torch.int64)[:, None] + base) + counters)
    return (_shifted(mixed_NK, 40)).to(torch.float32) / float(1 << 24)


def _mix(value: Tensor) -> Tensor:
    value = value + -7046029254386353131
    value = (value ^ _shifted(value, 30)) * -4658895280553007687
    value = (value ^ _shifted(value, 27)) * -7723592293110705685
    return value ^ _shifted(value, 31)


def _mix_integer(value: int) -> int:
    return int(_mix(torch.tensor((value + 2**63) % 2**64 - 2**63, dtype=torch.int64)))


def _shifted(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


class Augment(nn.Module):
    """Varies each image by its own draws, as far as `spec` says; shape, type, layout, device and range 0..255 stay."""

    def __init__(self, spec: AugmentSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, images_NCHW: Tensor, generator: torch.Generator | None = None, *, draws_NK: Tensor | None = None
    ) -> Tensor:
        """Pixels 0..255 (N, C, H, W), uint8 or float, varied. Pass `generator` or `draws_NK`, uniform in [0, 1)."""
        if draws_NK is None:
            device = generator.device if generator is not None else images_NCHW.device
            draws_NK = torch.rand(len(images_NCHW), NUM_DRAWS, generator=generator, device=device)
        draws_KN = draws_NK.to(images_NCHW.device, non_blocking=True).unbind(1)
        layout = torch.contiguous_format if images_NCHW.is_contiguous() else torch.channels_last
        return self._varied(images_NCHW, draws_KN).contiguous(memory_format=layout)

    def _varied(self, images_NCHW: Tensor, draws_KN: tuple[Tensor, ...]) -> Tensor:
        spec = self.spec
        if spec.horizontal_flip or spec.vertical_flip or spec.shift:
            images_NCHW = _flip_and_shift(images_NCHW, spec, draws_KN[:4])
        if not (spec.zoom or spec.rotate_degrees or spec.brightness or spec.contrast):
            return images_NCHW
        varied_NCHW = images_NCHW if images_NCHW.is_floating_point() else images_NCHW.float()
        if spec.zoom or spec.rotate_degrees:
            varied_NCHW = _zoom_and_rotate(varied_NCHW, spec, draws_KN[4:6])
        if spec.brightness or spec.contrast:
            varied_NCHW = _light(varied_NCHW, spec, draws_KN[6:8])
        return varied_NCHW if images_NCHW.is_floating_point() else varied_NCHW.round_().to(images_NCHW.dtype)


def _flip_and_shift(images_NCHW: Tensor, spec: AugmentSpec, draws_4N: tuple[Tensor, ...]) -> Tensor:
    num, channels, height, width = images_NCHW.shape
    flipped_N, mirrored_N = draws_4N[0] < spec.vertical_flip, draws_4N[2] < spec.horizontal_flip
    down_N, right_N = _offsets(height, spec.shift, draws_4N[1]), _offsets(width, spec.shift, draws_4N[3])
    if images_NCHW.device.type == "cpu" and images_NCHW.dtype in (torch.uint8, torch.float32):
        return _by_slices(images_NCHW, flipped_N.tolist(), down_N.tolist(), mirrored_N.tolist(), right_N.tolist())
    rows_NH = _source_indices(height, flipped_N, down_N)
    columns_NW = _source_indices(width, mirrored_N, right_N)
    places_N1P = (rows_NH[:, :, None] * width + columns_NW[:, None, :]).reshape(num, 1, height * width)
    flat_NCP = images_NCHW.reshape(num, channels, height * width)
    return flat_NCP.gather(2, places_N1P.expand(num, channels, height * width)).reshape(images_NCHW.shape)


def _by_slices(images_NCHW: Tensor, flipped: list[bool], down: list[int], mirrored: list[bool], right: list[int]) -> Tensor:
    """The same pixels as the gather gives, several times as fast on a CPU, which copies runs faster than it looks up places.

    Shifting the mirror image is mirroring the image shifted the other way.
    """
    source_NCHW = images_NCHW.contiguous().numpy()
    varied_NCHW = np.empty_like(source_NCHW)
    for n, (source_CHW, varied_CHW) in enumerate(zip(source_NCHW, varied_NCHW, strict=True)):
        into_CHW = varied_CHW[:, :: -1 if flipped[n] else 1, :: -1 if mirrored[n] else 1]
        for rows, from_rows in _runs(source_CHW.shape[1], -down[n] if flipped[n] else down[n]):
            for columns, from_columns in _runs(source_CHW.shape[2], -right[n] if mirrored[n] else right[n]):
                into_CHW[:, rows, columns] = source_CHW[:, from_rows, from_columns]
    return torch.from_numpy(varied_NCHW)


def _runs(side: int, offset: int) -> tuple[tuple[slice, slice], ...]:
    """Which run of places takes its pixels from which: the shifted part, and the edge it leaves, mirrored."""
    if offset == 0:
        return ((slice(None), slice(None)),)
    if offset > 0:
        edge = slice(side - 2, side - 2 - offset if offset < side - 1 else None, -1)
        return (slice(side - offset), slice(offset, None)), (slice(side - offset, None), edge)
    return (slice(-offset, None), slice(side + offset)), (slice(-offset), slice(-offset, 0, -1))


def _offsets(side: int, shift: float, draw_N: Tensor) -> Tensor:
    largest = int(shift * side)
    return (draw_N * (2 * largest + 1)).long() - largest


def _source_indices(side: int, flipped_N: Tensor, offset_N: Tensor) -> Tensor:
    index_NS = torch.arange(side, device=offset_N.device) + offset_N[:, None]
    index_NS = (side - 1) - ((side - 1) - index_NS.abs()).abs()  # mirrored at both edges
    return torch.where(flipped_N[:, None], side - 1 - index_NS, index_NS)


def _zoom_and_rotate(images_NCHW: Tensor, spec: AugmentSpec, draws_2N: tuple[Tensor, ...]) -> Tensor:
    height, width = images_NCHW.shape[2:]
    factor_N = 1 / (1 + spec.zoom * (2 * draws_2N[0] - 1))
    angle_N = torch.deg2rad(spec.rotate_degrees * (2 * draws_2N[1] - 1))
    cos_N, sin_N, zero_N = factor_N * angle_N.cos(), factor_N * angle_N.sin(), torch.zeros_like(angle_N)
    theta_N23 = torch.stack((cos_N, -sin_N * height / width, zero_N, sin_N * width / height, cos_N, zero_N), dim=1).view(
        -1, 2, 3
    )
    grid_NHW2 = functional.affine_grid(theta_N23.to(images_NCHW.dtype), list(images_NCHW.shape), align_corners=False)
    return functional.grid_sample(images_NCHW, grid_NHW2, mode="bilinear", padding_mode="reflection", align_corners=False)


def _light(images_NCHW: Tensor, spec: AugmentSpec, draws_2N: tuple[Tensor, ...]) -> Tensor:
    brightness_N111 = (1 + spec.brightness * (2 * draws_2N[0] - 1)).to(images_NCHW.dtype)[:, None, None, None]
    contrast_N111 = (1 + spec.contrast * (2 * draws_2N[1] - 1)).to(images_NCHW.dtype)[:, None, None, None]
    mean_N111 = images_NCHW.mean(dim=(1, 2, 3), keepdim=True)
    offset_N111 = mean_N111 * brightness_N111 * (1 - contrast_N111)
    return torch.addcmul(offset_N111, images_NCHW, brightness_N111 * contrast_N111).clamp_(0, 255)
