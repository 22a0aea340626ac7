"""Each image has its own variation, it repeats, and it stays an image."""

import pytest
import torch

from toolkit.data import Augment, AugmentSpec, draws_NK
from toolkit.data import augment as module
from toolkit.errors import UsageError

NOTHING = AugmentSpec(horizontal_flip=0, shift=0, brightness=0, contrast=0)
EACH = [
    {"horizontal_flip": 0.5},
    {"vertical_flip": 0.5},
    {"shift": 0.25},
    {"zoom": 0.3},
    {"rotate_degrees": 30},
    {"brightness": 0.5},
    {"contrast": 0.5},
]


def _spec(fields: dict[str, float]) -> AugmentSpec:
    return AugmentSpec(**{"horizontal_flip": 0, "shift": 0, "brightness": 0, "contrast": 0, **fields})


def _same_image(num: int, *, channels: int = 3) -> torch.Tensor:
    image = torch.randint(40, 200, (1, channels, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image.repeat(num, 1, 1, 1)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fields", EACH, ids=lambda fields: next(iter(fields)))
def test_images_of_one_batch_vary_independently(fields: dict[str, float]) -> None:
    varied = Augment(_spec(fields))(_same_image(64), _seeded())
    distinct = len({image.numpy().tobytes() for image in varied})
    assert distinct == 2 if "flip" in next(iter(fields)) else distinct > 20


@pytest.mark.parametrize("fields", [*EACH, {}], ids=lambda fields: next(iter(fields), "nothing"))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_type_layout_and_range_stay(fields: dict[str, float], dtype: torch.dtype, layout: torch.memory_format) -> None:
    images = (_same_image(4).float() * 1.27).to(dtype).contiguous(memory_format=layout)
    before = images.clone()
    varied = Augment(_spec(fields))(images, _seeded())
    assert (varied.shape, varied.dtype) == (images.shape, dtype)
    assert varied.is_contiguous(memory_format=layout)
    assert varied.min() >= 0
    assert varied.max() <= 255
    assert torch.equal(images, before)


def test_nothing_asked_changes_nothing() -> None:
    images = _same_image(4)
    assert torch.equal(Augment(NOTHING)(images, _seeded()), images)


def test_a_generator_repeats_and_moves_on() -> None:
    augment, generator = Augment(AugmentSpec()), _seeded()
    state = generator.get_state()
    first, second = augment(_same_image(8), generator), augment(_same_image(8), generator)
    generator.set_state(state)
    assert torch.equal(augment(_same_image(8), generator), first)
    assert not torch.equal(first, second)


def test_flips_are_exact_and_happen_as_often_as_asked() -> None:
    images = _same_image(2000)
    varied = Augment(_spec({"horizontal_flip": 0.3}))(images, _seeded())
    flipped_N = (varied == images.flip(3)).flatten(1).all(1)
    kept_N = (varied == images).flatten(1).all(1)
    assert (flipped_N ^ kept_N).all()
    assert flipped_N.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(Augment(_spec({"vertical_flip": 1}))(images, _seeded()), images.flip(2))


def test_shifts_are_whole_pixels_with_mirrored_edges() -> None:
    images = _same_image(200, channels=1)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 1, 1), mode="reflect").to(torch.uint8)
    windows = {padded[0, :, y : y + 16, x : x + 20].numpy().tobytes() for y in range(3) for x in range(5)}
    varied = Augment(_spec({"shift": 0.1}))(images, _seeded())
    assert {image.numpy().tobytes() for image in varied} == windows


def test_brightness_and_contrast_do_what_they_say() -> None:
    images = _same_image(500).double()
    mean_N = images.mean(dim=(1, 2, 3))
    brighter = Augment(_spec({"brightness": 0.2}))(images, _seeded())
    ratio_N = brighter.mean(dim=(1, 2, 3)) / mean_N
    assert 0.8 <= ratio_N.min() < 0.82
    assert 1.18 < ratio_N.max() <= 1.2
    contrasted = Augment(_spec({"contrast": 0.2}))(images, _seeded())
    torch.testing.assert_close(contrasted.mean(dim=(1, 2, 3)), mean_N, rtol=1e-3, atol=0.1)
    spread_N = contrasted.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert spread_N.min() < 0.82
    assert spread_N.max() > 1.18


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16)).double()
    draws = torch.tensor([[0.9, 0.5, 0.9, 0.5, 0.5, 1.0, 0.5, 0.5]], dtype=torch.float64)
    turned = Augment(_spec({"rotate_degrees": 90}))(image, draws_NK=draws)
    assert any(torch.allclose(turned, image.rot90(k, (2, 3)), atol=1e-3) for k in (1, 3))


def test_rotation_keeps_shapes_on_images_that_are_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    disc = ((y**2 + x**2) < 15**2).double()[None, None] * 255
    turned = Augment(_spec({"rotate_degrees": 45}))(disc, draws_NK=torch.full((1, 8), 1.0, dtype=torch.float64))
    middle = (slice(None), slice(None), slice(0, 40), slice(20, 60))  # the mirrored edges show the disc again in the corners
    assert (turned[middle] - disc[middle])[0, 0][(y**2 + x**2)[:, 20:60] < 19**2].abs().mean() < 15


def test_draws_depend_on_image_seed_and_epoch_alone() -> None:
    indices = torch.tensor([7, 3, 500])
    draws = draws_NK(indices, seed=1, epoch=2)
    assert torch.equal(draws_NK(indices.flip(0), seed=1, epoch=2), draws.flip(0))
    assert torch.equal(draws_NK(indices[1:], seed=1, epoch=2), draws[1:])
    others = [draws_NK(indices, seed=2, epoch=2), draws_NK(indices, seed=1, epoch=3), draws_NK(indices, seed=2, epoch=1)]
    assert all(not torch.equal(draws, other) for other in others)
    assert torch.equal(
        Augment(AugmentSpec())(_same_image(3), draws_NK=draws)[2:], Augment(AugmentSpec())(_same_image(1), draws_NK=draws[2:])
    )


def test_draws_are_uniform_and_unrelated() -> None:
    draws = torch.cat([draws_NK(torch.arange(20_000), seed=0, epoch=epoch) for epoch in range(2)], dim=1)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.stack([torch.histc(column, 20, 0, 1) for column in draws.T])
    assert ((histogram - 1000).abs() < 200).all()
    correlation = torch.corrcoef(draws.T) - torch.eye(draws.shape[1])
    assert correlation.abs().max() < 0.04


@pytest.mark.parametrize("fields", [{"horizontal_flip": 1.5}, {"shift": 0.7}, {"brightness": -0.1}, {"rotate_degrees": 200}])
def test_impossible_settings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=rf"augment.{next(iter(fields))} is"):
        AugmentSpec(**fields)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fields", EACH, ids=lambda fields: next(iter(fields)))
def test_a_cuda_device_gives_the_same_variations(fields: dict[str, float]) -> None:
    augment, images, indices = Augment(_spec(fields)), _same_image(32), torch.arange(32)
    draws = draws_NK(indices.cuda(), seed=1, epoch=2)
    assert torch.equal(draws.cpu(), draws_NK(indices, seed=1, epoch=2))
    difference = augment(images.cuda(), draws_NK=draws).cpu().int() - augment(images, draws_NK=draws.cpu()).int()
    assert difference.abs().max() <= (1 if set(fields) & {"zoom", "rotate_degrees", "brightness", "contrast"} else 0)
    assert augment(images.cuda(), _seeded()).device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("side", "shift"), [((12, 20), 0.3), ((2, 3), 0.5), ((1, 4), 0.5), ((9, 9), 0.0)])
def test_the_way_a_cpu_shifts_gives_the_pixels_of_the_gather(dtype: torch.dtype, side: tuple[int, int], shift: float) -> None:
    images_NCHW = torch.randint(0, 256, (40, 3, *side)).to(dtype)
    augment = Augment(AugmentSpec(vertical_flip=0.5, shift=shift, brightness=0, contrast=0))
    draws_KN = draws_NK(torch.arange(40), seed=1, epoch=2)
    rows_NH = module._source_indices(side[0], draws_KN[:, 0] < 0.5, module._offsets(side[0], shift, draws_KN[:, 1]))
    columns_NW = module._source_indices(side[1], draws_KN[:, 2] < 0.5, module._offsets(side[1], shift, draws_KN[:, 3]))
    samples, channels = torch.arange(40)[:, None, None, None], torch.arange(3)[None, :, None, None]
    expected = images_NCHW[samples, channels, rows_NH[:, None, :, None], columns_NW[:, None, None, :]]
    for laid_out in (images_NCHW, images_NCHW.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(augment(laid_out, draws_NK=draws_KN), expected)
