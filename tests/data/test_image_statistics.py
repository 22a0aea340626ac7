"""Each statistic moves with what it is named after, and only a defined amount with the rest."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from toolkit.data.image_statistics import STATISTICS, all_image_statistics, image_statistics
from toolkit.data.images import Sample
from toolkit.errors import InputRefused


def of(pixels: np.ndarray) -> dict[str, float]:
    return dict(zip(STATISTICS, image_statistics(pixels), strict=True))


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    y, x = np.mgrid[0:120, 0:160]
    return np.stack([100 + 40 * np.sin(x / 5), 110 + 30 * np.cos(y / 4), 90 + 20 * np.sin((x + y) / 6)], axis=2).astype(
        np.uint8
    )


def test_light_contrast_colour_size_and_aspect(scene: np.ndarray) -> None:
    found = of(scene)
    luma = np.asarray(Image.fromarray(scene).convert("L"), float)
    assert found["brightness"] == pytest.approx(luma.mean())
    assert found["contrast"] == pytest.approx(luma.std())
    assert found["size"] == pytest.approx(np.log2(120 * 160))
    assert found["aspect"] == pytest.approx(np.log2(160 / 120))
    assert found["colour"] > 10
    assert of(luma.astype(np.uint8))["colour"] == 0
    assert of(scene + 20)["brightness"] == pytest.approx(found["brightness"] + 20, abs=0.6)


def test_blur_lowers_sharpness_and_noise_is_measured_in_grey_levels(scene: np.ndarray) -> None:
    checks = np.kron(np.indices((30, 40)).sum(axis=0) % 2, np.ones((4, 4)))
    edges = (scene * 0.5 + 60 * checks[..., None]).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(edges).filter(ImageFilter.GaussianBlur(3)))
    assert of(blurred)["sharpness"] < of(edges)["sharpness"] - 0.3
    flat = np.full((200, 200), 120.0) + np.random.default_rng(0).normal(0, 6, (200, 200))
    assert of(flat.clip(0, 255).astype(np.uint8))["noise"] == pytest.approx(6, rel=0.05)


def test_two_resolutions_of_one_scene_differ_in_size_alone() -> None:
    small = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    large = np.kron(small, np.ones((16, 16), np.uint8))
    shrunk = np.asarray(Image.fromarray(large).resize((256, 256), Image.Resampling.BOX))
    assert of(large)["size"] == pytest.approx(of(shrunk)["size"] + 4)
    for name in ("brightness", "contrast", "sharpness", "noise"):
        assert of(large)[name] == pytest.approx(of(shrunk)[name])


def test_thin_images_have_finite_statistics_and_damaged_ones_none(scene: np.ndarray) -> None:
    assert np.isfinite(image_statistics(scene[:1, :2])).all()
    stream = io.BytesIO()
    Image.fromarray(scene).save(stream, "PNG")
    with pytest.raises(InputRefused):
        image_statistics(stream.getvalue()[:200])
    rows = all_image_statistics([Sample("a", 0, "test", scene), Sample("b", 0, "test", scene[..., :2].repeat(3, axis=2))])
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()
