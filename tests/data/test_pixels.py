"""Loading: order, refusals and the cache on disk."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.bundle import Preprocessing
from toolkit.data import ImageSet, Pixels, Sample, load_pixels, render
from toolkit.data.shapes import shapes
from toolkit.errors import EnvironmentProblem, InputRefused

SPEC = Preprocessing(size_px=(16, 24))


def _on_disk(directory: Path, num: int = 10) -> ImageSet:
    directory.mkdir(exist_ok=True)
    images = shapes(num, noise=0)
    samples = []
    for i, sample in enumerate(images.samples):
        Image.fromarray(np.asarray(sample.source)).save(directory / f"{i}.png")
        samples.append(replace(sample, source=directory / f"{i}.png"))
    return replace(images, samples=tuple(samples))


def test_pixels_are_the_rendered_images_in_order() -> None:
    images = shapes(30)
    pixels = load_pixels(images, SPEC)
    assert pixels.images_NCHW.shape == (30, 3, 16, 24)
    assert pixels.images_NCHW.is_contiguous()
    assert pixels.keys == tuple(sample.key for sample in images.samples)
    assert torch.equal(pixels.targets_N, images.targets_N())
    for i in (0, 17, 29):
        np.testing.assert_array_equal(pixels.images_NCHW[i].permute(1, 2, 0).numpy(), render(images.samples[i].source, SPEC))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_take_keeps_everything_together(kind: type) -> None:
    pixels = load_pixels(shapes(30), SPEC)
    taken = pixels.take(kind([5, 2]))
    assert taken.keys == (pixels.keys[5], pixels.keys[2])
    assert taken.slices == (pixels.slices[5], pixels.slices[2])
    assert torch.equal(taken.images_NCHW, pixels.images_NCHW[[5, 2]])
    assert taken.targets_N.tolist() == [int(pixels.targets_N[5]), int(pixels.targets_N[2])]
    assert len(pixels.take(kind([])) if kind is list else taken.take([])) == 0


def test_unreadable_images_are_named_and_left_out_below_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = _on_disk(tmp_path / "images")
    (tmp_path / "images" / "3.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        pixels = load_pixels(images, SPEC, max_unreadable=0.1)
    assert len(pixels) == 9
    assert images.samples[3].key not in pixels.keys
    assert pixels.targets_N.tolist() == [s.target for i, s in enumerate(images.samples) if i != 3]
    assert "1 of 10 images cannot be read" in caplog.text
    assert "3.png is empty" in caplog.text


def test_too_many_unreadable_images_are_refused(tmp_path: Path) -> None:
    images = _on_disk(tmp_path / "images")
    (tmp_path / "images" / "3.png").write_bytes(b"")
    with pytest.raises(InputRefused, match=r"(?s)1 of 10 images cannot be read.*3\.png is empty.*At most 1\.0%"):
        load_pixels(images, SPEC)


def test_no_images_are_refused() -> None:
    with pytest.raises(InputRefused, match="has no images to load"):
        load_pixels(replace(shapes(6), samples=()), SPEC)


def test_parts_that_do_not_fit_are_a_programming_error() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="differ in length"):
        Pixels(images, torch.zeros(1, dtype=torch.int64), ("a", "b"), ("", ""), ("x",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be uint8"):
        Pixels(images.float(), torch.zeros(2, dtype=torch.int64), ("a", "b"), ("", ""), ("x",))  # pyright: ignore[reportArgumentType]


def test_the_cache_gives_the_same_pixels_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _on_disk(tmp_path / "images")
    (tmp_path / "images" / "3.png").write_bytes(b"")
    plain = load_pixels(images, SPEC, max_unreadable=0.5)
    first = load_pixels(images, SPEC, max_unreadable=0.5, cache=tmp_path / "cache")

    def forbidden(*_: object) -> np.ndarray:
        raise AssertionError("decoded although cached")

    monkeypatch.setattr("toolkit.data.pixels.render", forbidden)
    second = load_pixels(images, SPEC, max_unreadable=0.5, cache=tmp_path / "cache")
    assert torch.equal(plain.images_NCHW, first.images_NCHW)
    assert torch.equal(plain.images_NCHW, second.images_NCHW)
    assert second.keys == plain.keys
    with pytest.raises(InputRefused, match="1 of 10"):
        load_pixels(images, SPEC, cache=tmp_path / "cache")


def test_the_cache_follows_content_and_preprocessing_not_labels(tmp_path: Path) -> None:
    images, cache = _on_disk(tmp_path / "images"), tmp_path / "cache"

    def entries() -> int:
        return len([path for path in cache.iterdir() if not path.name.startswith(".")])

    load_pixels(images, SPEC, cache=cache)
    load_pixels(replace(images, labels=("a", "b", "c")), SPEC, cache=cache)
    load_pixels(images, replace(SPEC, mean=(0.5, 0.5, 0.5)), cache=cache)
    assert entries() == 1
    load_pixels(images, replace(SPEC, interpolation="bicubic"), cache=cache)
    assert entries() == 2
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "3.png")
    changed = load_pixels(images, SPEC, cache=cache)
    assert entries() == 3
    assert not changed.images_NCHW[3].any()


def test_writing_to_mapped_pixels_does_not_reach_the_cache(tmp_path: Path) -> None:
    images, cache = shapes(6), tmp_path / "cache"
    load_pixels(images, SPEC, cache=cache).images_NCHW.zero_()
    assert load_pixels(images, SPEC, cache=cache).images_NCHW.any()


@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    images, cache = shapes(6), tmp_path / "cache"
    expected = load_pixels(images, SPEC, cache=cache).images_NCHW.clone()
    (stored,) = cache.glob("*/images_NCHW.npy")
    if damage == "delete":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes()[:500] if damage == "truncate" else b"garbage")
    assert torch.equal(load_pixels(images, SPEC, cache=cache).images_NCHW, expected)


def test_an_unwritable_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(EnvironmentProblem, match="Cannot write"):
        load_pixels(shapes(6), SPEC, cache=tmp_path / "cache")


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.data.pixels.render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_pixels(shapes(6), SPEC, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_samples_may_mix_files_and_arrays(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    images = ImageSet("mixed", ("x",), (Sample("a", 0, "train", tmp_path / "a.png"), Sample("b", 0, "train", photo)))
    pixels = load_pixels(images, SPEC)
    assert torch.equal(pixels.images_NCHW[0], pixels.images_NCHW[1])
