"""Where decoded images lie, and how the cache on disk keeps to its size under several runs."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.bundle import Preprocessing
from toolkit.bundle.machine import GIB_VARIABLE
from toolkit.data import ImageSet, Pixels, Undecoded, load_pixels, place_pixels
from toolkit.data.cache import limit_bytes
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused, UsageError

SPEC = Preprocessing(size_px=(16, 24))
NUM_BYTES = 3 * 16 * 24


def on_disk(directory: Path, num: int = 6) -> ImageSet:
    directory.mkdir(exist_ok=True)
    images = shapes(num, noise=0)
    samples = []
    for i, sample in enumerate(images.samples):
        Image.fromarray(np.asarray(sample.source)).save(directory / f"{i}.png")
        samples.append(replace(sample, source=directory / f"{i}.png"))
    return replace(images, samples=tuple(samples))


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/")}


def test_files_are_mapped_from_the_cache_and_arrays_are_not(tmp_path: Path) -> None:
    found = place_pixels(on_disk(tmp_path / "images"), SPEC, cache=tmp_path / "cache")
    assert isinstance(found, Pixels)
    assert len(entries(tmp_path / "cache")) == 1
    assert isinstance(place_pixels(shapes(6), SPEC, cache=tmp_path / "other"), Pixels)
    assert not (tmp_path / "other").exists()


def test_without_room_on_disk_they_lie_in_memory_and_without_that_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GIB_VARIABLE, "0")
    images, cache = on_disk(tmp_path / "images"), tmp_path / "cache"
    kept = place_pixels(images, SPEC, cache=cache)
    later = place_pixels(images, SPEC, cache=cache, memory_bytes=100)
    assert isinstance(kept, Pixels)
    assert isinstance(later, Undecoded)
    assert not cache.exists()
    chosen_N = torch.tensor([4, 1, 1])
    assert torch.equal(later.read(chosen_N), kept.read(chosen_N))
    assert (later.keys, later.labels, later.slices, later.shape) == (kept.keys, kept.labels, kept.slices, kept.shape)
    assert torch.equal(later.targets_N, kept.targets_N)


@pytest.mark.parametrize("memory_bytes", [None, 100])
def test_unreadable_images_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None) -> None:
    if memory_bytes is not None:
        monkeypatch.setenv(GIB_VARIABLE, "0")
    images = on_disk(tmp_path / "images")
    (tmp_path / "images" / "3.png").write_bytes(b"")
    bad = images.samples[3].key
    found = place_pixels(images, SPEC, cache=tmp_path / "cache", unreadable=[bad], memory_bytes=memory_bytes)
    assert bad not in found.keys
    assert found.read(torch.arange(5)).shape == (5, 3, 16, 24)
    if memory_bytes is not None:
        late = place_pixels(images, SPEC, cache=tmp_path / "cache", memory_bytes=memory_bytes)
        with pytest.raises(InputRefused, match=r"3\.png is empty"):
            late.read(torch.tensor([3]))


def test_the_least_recently_used_pixels_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    sets = [on_disk(tmp_path / f"images{number}", num) for number, num in enumerate((5, 6, 7))]
    monkeypatch.setenv(GIB_VARIABLE, str((14 * NUM_BYTES + 1000) / 2**30))  # room for two of the three
    first = load_pixels(sets[0], SPEC, cache=cache)
    (name,) = entries(cache)
    load_pixels(sets[1], SPEC, cache=cache)
    (second,) = entries(cache) - {name}
    os.utime(cache / second, (1, 1))
    time.sleep(0.01)
    load_pixels(sets[0], SPEC, cache=cache)  # used again
    load_pixels(sets[2], SPEC, cache=cache)
    assert name in entries(cache)
    assert second not in entries(cache)
    assert len(entries(cache)) == 2
    load_pixels(sets[1], SPEC, cache=cache)
    assert torch.equal(first.images_NCHW, load_pixels(sets[0], SPEC).images_NCHW)  # a mapping outlives its entry


def test_of_runs_at_once_one_decodes_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, decoded = on_disk(tmp_path / "images"), []
    from toolkit.data import pixels as module

    render = module.render

    def slow(*arguments: object) -> np.ndarray:
        decoded.append(1)
        time.sleep(0.02)
        return render(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "render", slow)
    with ThreadPoolExecutor(3) as runs:
        found = list(runs.map(lambda _: load_pixels(images, SPEC, cache=tmp_path / "cache").images_NCHW, range(3)))
    assert len(decoded) == len(images)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_size_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIB_VARIABLE, "much")
    with pytest.raises(UsageError, match="TOOLKIT_CACHE_GIB is 'much'"):
        limit_bytes(tmp_path)
