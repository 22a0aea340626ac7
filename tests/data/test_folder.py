"""Folders and listings as users have them."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.data import ImageSet
from toolkit.data.folder import folder
from toolkit.errors import InputRefused

Write = Callable[..., Path]


def _splits(images: ImageSet) -> dict[str, str]:
    return {sample.key: sample.split for sample in images.samples}


def _listing(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "list.csv").write_bytes(text.encode(encoding))
    return root / "list.csv"


def test_a_directory_a_class(class_folder: Write) -> None:
    images = folder(class_folder(("dog", "cat"), num=20))
    assert images.labels == ("cat", "dog")
    assert images.name == "pets"
    assert Counter((s.split, images.labels[s.target]) for s in images.samples) == {
        **{("train", label): 12 for label in ("cat", "dog")},
        **{("val", label): 3 for label in ("cat", "dog")},
        **{("test", label): 5 for label in ("cat", "dog")},
    }
    assert all(sample.key.startswith(images.labels[sample.target] + "/") for sample in images.samples)


def test_what_tools_leave_behind_is_no_data(class_folder: Write) -> None:
    root = class_folder()
    for name in (".ipynb_checkpoints", ".git", "__MACOSX"):
        shutil.copytree(root / "cat", root / name)
    shutil.copytree(root / "cat", root / "cat" / ".ipynb_checkpoints")
    (root / "cat" / "._cat000.png").write_bytes(b"\0" * 10)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "readme.md").write_text("not a class")
    images = folder(root)
    assert images.labels == ("cat", "dog")
    assert len(images) == 20


def test_nested_folders_and_upper_case_names_count(class_folder: Write) -> None:
    root = class_folder()
    (root / "cat" / "2024" / "may").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "cat" / "2024" / "may" / "IMG.JPG")
    assert "cat/2024/may/IMG.JPG" in _splits(folder(root))


def test_a_label_is_the_same_from_every_file_system(class_folder: Write, tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    images = folder(class_folder((decomposed, "x"), root=tmp_path / "mac"))
    assert images.labels == (composed, "x")
    assert folder(tmp_path / "mac", labels=["x", decomposed]).labels == ("x", composed)


def test_a_link_loop_ends(class_folder: Write) -> None:
    root = class_folder()
    os.symlink(root / "cat", root / "cat" / "again")
    assert len(folder(root)) == 20


def test_given_splits_stay_and_missing_ones_come_from_train(class_folder: Write, tmp_path: Path) -> None:
    root = tmp_path / "ready"
    class_folder(root=root / "train", num=20)
    class_folder(root=root / "valid", num=4, start=100)
    splits = Counter(sample.split for sample in folder(root).samples)
    assert splits == {"train": 30, "val": 8, "test": 10}
    class_folder(root=root / "test", num=4, start=200)
    assert Counter(sample.split for sample in folder(root).samples) == {"train": 40, "val": 8, "test": 8}


def test_a_class_may_be_called_test(class_folder: Write) -> None:
    assert folder(class_folder(("control", "test"))).labels == ("control", "test")


def test_the_split_survives_renaming_and_moving(class_folder: Write, tmp_path: Path) -> None:
    root = class_folder(num=30)
    before = {sample.source.read_bytes(): sample.split for sample in folder(root).samples}  # pyright: ignore[reportAttributeAccessIssue]
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(path.with_name(f"new{997 * i % 60}.png"))
    root.rename(tmp_path / "moved")
    after = {sample.source.read_bytes(): sample.split for sample in folder(tmp_path / "moved").samples}  # pyright: ignore[reportAttributeAccessIssue]
    assert after == before


def test_labels_may_be_given_in_order(class_folder: Write) -> None:
    root = class_folder(("dog", "cat"))
    assert folder(root, labels=["dog", "cat", "bird"]).labels == ("dog", "cat", "bird")
    with pytest.raises(InputRefused, match=r"labelled dog, which data.labels=\['cat'\] does not name"):
        folder(root, labels=["cat"])


def test_places_without_images_are_refused(tmp_path: Path, class_folder: Write) -> None:
    with pytest.raises(InputRefused, match="is not a directory"):
        folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match=r"holds no images in class directories. Expected"):
        folder(tmp_path / "empty")
    root = class_folder()
    (root / "bird").mkdir()
    with pytest.raises(InputRefused, match="no images in the class directory bird"):
        folder(root)


def test_a_listing_gives_labels_splits_and_slices(class_folder: Write) -> None:
    root = class_folder()
    text = "path,label,split,slice\ncat/cat000.png,ok,train,night\ndog/dog000.png,bad,valid,day\ndog/dog001.png,bad,TEST,day\n"
    images = folder(root, csv=_listing(root, text))
    assert images.labels == ("bad", "ok")
    assert [(s.split, s.slice, images.labels[s.target]) for s in images.samples] == [
        ("train", "night", "ok"),
        ("val", "day", "bad"),
        ("test", "day", "bad"),
    ]
    assert folder(root, csv="list.csv").fingerprint() == images.fingerprint()


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8-sig")])
def test_spreadsheet_exports_are_read(class_folder: Write, mark: str, encoding: str) -> None:
    root = class_folder()
    lines = [f"cat/cat00{i}.png{mark}Straße{mark}" for i in range(4)]
    images = folder(root, csv=_listing(root, "\r\n".join([f"Path{mark}Label{mark}Slice", *lines, ""]), encoding))
    assert images.labels == ("Straße",)
    assert len(images) == 4


def test_class_names_that_look_like_numbers_or_booleans_stay_text(class_folder: Write) -> None:
    root = class_folder()
    text = "path,label\ncat/cat000.png,no\ncat/cat001.png,08\ncat/cat002.png,1e-4\n"
    assert folder(root, csv=_listing(root, text)).labels == ("08", "1e-4", "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na,b\n", "must name path and label"),
        ("", "must name path and label"),
        ("path,label\n", "lists no images"),
        ("path,label\ncat/cat000.png\n", "line 2: needs a path and a label"),
        ("path,label\ncat/cat000.png,a,b\n", "line 2: needs a path and a label"),
        ("path,label,split\ncat/cat000.png,a,train\ncat/cat001.png,a,dev\n", "line 3: the split is 'dev'"),
        ("path,label\ncat/cat000.png,a\ncat/cat000.png,b\n", "lists cat/cat000.png twice"),
        ("path,label\ncat/gone.png,a\n", r"1 files that are not there: cat/gone\.png"),
    ],
)
def test_odd_listings_are_refused_with_the_line(class_folder: Write, text: str, message: str) -> None:
    root = class_folder()
    with pytest.raises(InputRefused, match=message):
        folder(root, csv=_listing(root, text))


def test_a_listing_that_is_not_text_is_refused(class_folder: Write) -> None:
    root = class_folder()
    with pytest.raises(InputRefused, match="cannot be read as UTF-8"):
        folder(root, csv=root / "cat" / "cat000.png")
    with pytest.raises(InputRefused, match="cannot be read as UTF-8"):
        folder(root, csv=root / "gone.csv")


def test_copies_in_a_folder_never_part(class_folder: Write) -> None:
    root = class_folder(num=30)
    for path in sorted((root / "cat").glob("*.png")):
        shutil.copy(path, root / "cat" / f"copy of {path.name}")
    splits = _splits(folder(root))
    assert all(splits[f"cat/copy of cat{i:03d}.png"] == splits[f"cat/cat{i:03d}.png"] for i in range(30))
    assert np.unique(list(splits.values())).tolist() == ["test", "train", "val"]
