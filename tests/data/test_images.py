"""Image sets: what they refuse, how they are filtered, and what their fingerprint does and does not depend on."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.data import ImageSet, Sample
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused, UsageError


def test_split_and_where_keep_labels_and_partition() -> None:
    images = shapes(60)
    parts = [images.split(name) for name in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == len(images) == 60
    assert all(part.labels == images.labels for part in parts)
    assert len(images.where(["dark"])) + len(images.where(["bright"])) == 60
    assert images.where(["dark"]).slices() == ("dark",)
    assert images.targets_N().tolist() == [sample.target for sample in images.samples]


def test_unknown_split_and_slice_suggest_near_names() -> None:
    with pytest.raises(UsageError, match=r"Unknown split 'trian'. Did you mean train"):
        shapes(6).split("trian")
    with pytest.raises(UsageError, match=r"Unknown slice of data 'shapes' 'darc'. Did you mean dark"):
        shapes(6).where(["darc"])


def test_the_fingerprint_ignores_order_keys_and_place(tmp_path: Path) -> None:
    def stored(directory: Path) -> ImageSet:
        directory.mkdir()
        samples = []
        for i, sample in enumerate(shapes(12).samples):
            path = directory / f"{i}.png"
            Image.fromarray(np.asarray(sample.source)).save(path)
            samples.append(replace(sample, key=str(path), source=path))
        return replace(shapes(12), samples=tuple(samples))

    images, elsewhere = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert re.fullmatch("[0-9a-f]{64}", images.fingerprint())
    assert replace(elsewhere, name="other", samples=elsewhere.samples[::-1]).fingerprint() == images.fingerprint()


def test_the_fingerprint_sees_content_label_and_split() -> None:
    images = shapes(12)
    first, rest = images.samples[0], images.samples[1:]
    pixels = np.array(first.source)
    pixels[0, 0, 0] ^= 1
    changed = [
        replace(first, source=pixels),
        replace(first, source=np.ascontiguousarray(np.asarray(first.source).reshape(16, 64, 3))),
        replace(first, target=1),
        replace(first, split="val" if first.split != "val" else "train"),
    ]
    found = {replace(images, samples=(sample, *rest)).fingerprint() for sample in changed}
    assert len(found | {images.fingerprint(), replace(images, labels=("a", "b", "c")).fingerprint()}) == 6


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (4, 4), 1).save(path)
    before = ImageSet("one", ("a",), (Sample("a", 0, "train", path),)).fingerprint()
    Image.new("L", (4, 4), 2).save(path)
    assert ImageSet("one", ("a",), (Sample("a", 0, "train", path),)).fingerprint() != before


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    images = ImageSet("one", ("a",), (Sample("cell 1", 0, "train", tmp_path / "gone.png"),))
    with pytest.raises(InputRefused, match=r"'cell 1'.*gone\.png cannot be read"):
        images.fingerprint()


def test_unsound_sets_are_refused() -> None:
    pixels = np.zeros((2, 2), np.uint8)
    sample = Sample("a", 0, "train", pixels)
    with pytest.raises(InputRefused, match="two images have the key 'a'"):
        ImageSet("s", ("x",), (sample, sample))
    with pytest.raises(InputRefused, match=r"target 1, but there are 1 labels"):
        ImageSet("s", ("x",), (replace(sample, target=1),))
    with pytest.raises(InputRefused, match="same name"):
        ImageSet("s", ("x", "x"), ())
    with pytest.raises(UsageError, match="choose train, val or test"):
        Sample("a", 0, "dev", pixels)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputRefused, match="give uint8 pixels"):
        Sample("a", 0, "train", pixels.astype(np.float32))
