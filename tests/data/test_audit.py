"""Each planted fault of a data set is found, named, and weighed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.data import ImageSet, Sample, audit, require_sound
from toolkit.data.folder import folder
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused


def _with(images: ImageSet, *added: Sample) -> ImageSet:
    return replace(images, samples=(*images.samples, *added))


def test_a_sound_set_passes_and_is_counted() -> None:
    found = audit(shapes(120), expected_labels=["circle", "square", "triangle"])
    require_sound(found)
    assert (found.problems, found.warnings) == ((), ())
    assert found.counts["train"] == {"circle": 24, "square": 24, "triangle": 24}
    assert json.loads(json.dumps(found.as_plain()))["num_images"] == 120


def test_unreadable_images_are_named_and_weighed(class_folder: Callable[..., Path]) -> None:
    root = class_folder(num=20)
    (root / "cat" / "cat003.png").write_bytes(b"")
    found = audit(folder(root))
    assert [key for key, _ in found.unreadable] == ["cat/cat003.png"]
    with pytest.raises(InputRefused, match=r"(?s)'pets' cannot be used.*1 of 40 images cannot be read.*cat003\.png is empty"):
        require_sound(found)
    tolerant = audit(folder(root), max_unreadable=0.05)
    require_sound(tolerant)
    assert "1 of 40 images cannot be read" in tolerant.warnings[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_missing_where_it_is_learnt_or_chosen_is_a_problem(split: str) -> None:
    images = shapes(120)
    kept = tuple(sample for sample in images.samples if (sample.split, sample.target) != (split, 1))
    with pytest.raises(InputRefused, match=rf"the split {split} has no image of square"):
        require_sound(audit(replace(images, samples=kept)))


def test_a_class_missing_from_test_is_a_warning() -> None:
    images = shapes(120)
    kept = tuple(sample for sample in images.samples if (sample.split, sample.target) != ("test", 1))
    found = audit(replace(images, samples=kept))
    require_sound(found)
    assert "the split test has no image of square" in found.warnings[0]


def test_an_empty_split_is_said() -> None:
    with pytest.raises(InputRefused, match="the split val has no images"):
        require_sound(audit(shapes(120).split("train")))
    with pytest.raises(InputRefused, match="the split train has no images"):
        require_sound(audit(replace(shapes(120), samples=())))


def test_a_leak_is_found_even_when_saved_in_another_format(tmp_path: Path) -> None:
    images = shapes(120)
    tested = next(sample for sample in images.samples if sample.split == "test")
    Image.fromarray(np.asarray(tested.source)).save(tmp_path / "copy.bmp")
    leaky = _with(images, Sample("copy", tested.target, "train", tmp_path / "copy.bmp"))
    found = audit(leaky)
    assert [set(group) for group in found.leaked] == [{f"test:circle:{tested.key}", "train:circle:copy"}]
    with pytest.raises(InputRefused, match=r"2 images appear in more than one split \(3\.3% of test\)"):
        require_sound(found)
    assert audit(leaky, max_leaked=0.05).problems == ()
    assert "appear in more than one split" in audit(leaky, max_leaked=0.05).warnings[0]


def test_copies_within_a_split_and_contradicting_labels_are_warnings() -> None:
    images = shapes(120)
    first = next(sample for sample in images.samples if sample.split == "train" and sample.target == 0)
    same = replace(first, key="same")
    other = replace(first, key="other", target=1)
    found = audit(_with(images, same, other))
    require_sound(found)
    assert len(found.repeated[0]) == 3
    assert "train:square:other" in found.contradicting[0]
    assert any("different labels" in warning for warning in found.warnings)


def test_labels_that_disagree_with_the_bundle_are_problems() -> None:
    images = shapes(120)
    with pytest.raises(InputRefused, match=r"in another order .* every class would count as another"):
        require_sound(audit(images, expected_labels=["square", "circle", "triangle"]))
    with pytest.raises(InputRefused, match=r"missing \['star'\], additional \['triangle'\]"):
        require_sound(audit(images, expected_labels=["circle", "square", "star"]))


def test_every_problem_is_listed_at_once() -> None:
    images = shapes(120).split("train")
    found = audit(images, expected_labels=["a", "b", "c"])
    assert len(found.problems) == 2
    with pytest.raises(InputRefused, match=r"(?s)val has no images.*labels are not the bundle's"):
        require_sound(found)
