"""Tar shards: the same data set as the folder they were packed from, read nearly in their own order."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.bundle import Preprocessing
from toolkit.bundle.machine import GIB_VARIABLE
from toolkit.data import ImageSet, Undecoded, audit, load_pixels, place_pixels
from toolkit.data import tar_index as module
from toolkit.data.folder import folder
from toolkit.data.packing import pack
from toolkit.data.shapes import shapes
from toolkit.data.shard_order import ShardOrder, Shuffle
from toolkit.data.shards import expanded, shards
from toolkit.errors import InputRefused, UsageError

Write = Callable[..., Path]
SPEC = Preprocessing(size_px=(8, 8))


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "machine"))


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def written(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar as other programs write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def webdataset(start: int, num: int) -> dict[str, bytes]:
    return {
        f"{i:05d}.{end}": part
        for i in range(start, start + num)
        for end, part in (("png", picture(i)), ("cls", b"%d" % (i % 2)))
    }


def facts(images: ImageSet) -> set[tuple[str, int, str, str]]:
    return {(sample.key, sample.target, sample.split, sample.slice) for sample in images.samples}


def test_a_packed_folder_is_the_same_data_set(class_folder: Write, tmp_path: Path) -> None:
    images = folder(class_folder(num=40))
    paths = pack(images, tmp_path / "packed", shard_bytes=8000)
    assert len(paths) > 5
    packed = shards(tmp_path / "packed")
    assert facts(packed) == facts(images)
    assert packed.labels == images.labels
    assert packed.fingerprint() == images.fingerprint()
    assert audit(packed).problems == ()
    here = {sample.key: i for i, sample in enumerate(images.samples)}
    chosen = torch.tensor([here[sample.key] for sample in packed.samples])
    assert torch.equal(load_pixels(packed, SPEC).images_NCHW, load_pixels(images, SPEC).images_NCHW[chosen])
    again = pack(images, tmp_path / "again", shard_bytes=8000)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_pixels_in_memory_are_packed_as_files(tmp_path: Path) -> None:
    images = shapes(24)
    pack(images, tmp_path / "packed")
    packed = shards(tmp_path / "packed")
    assert facts(packed) == facts(images)
    with pytest.raises(UsageError, match="packed is there already"):
        pack(images, tmp_path / "packed")


def test_packing_that_fails_leaves_nothing(class_folder: Write, tmp_path: Path) -> None:
    images = folder(class_folder(), val_fraction=0, test_fraction=0)
    (class_folder() / "cat" / "cat003.png").unlink()
    with pytest.raises(InputRefused, match=r"cat003.png cannot be read"):
        pack(images, tmp_path / "packed" / "here")
    assert list((tmp_path / "packed").iterdir()) == []


def test_shards_of_webdataset_by_pattern_split_and_labels_file(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path / f"train-{number:04d}.tar", webdataset(number * 10, 10))
    written(tmp_path / "val-0000.tar", webdataset(50, 6))
    (tmp_path / "labels.txt").write_text("good\nbad\n")
    images = shards(tmp_path)
    assert images.labels == ("good", "bad")
    assert len(images.split("val")) == 6
    assert len(images.split("train")) + len(images.split("test")) == 30
    assert images.samples[0].key == "train-0000/00000.png"
    some = shards(f"{tmp_path}/train-{{0000..0001}}.tar", labels=["a", "b"], test_fraction=0)
    assert (len(some), some.labels, some.name) == (20, ("a", "b"), tmp_path.name)
    assert len(shards(f"{tmp_path}/*-0000.tar")) == 16
    (tmp_path / "labels.txt").unlink()
    assert shards(tmp_path).labels == ("0", "1")
    with pytest.raises(InputRefused, match=r"train-0003.tar: there is no shard"):
        shards(f"{tmp_path}/train-{{0000..0003}}.tar")
    with pytest.raises(InputRefused, match=r"samples of the classes 1, which the labels \['a'\] do not name"):
        shards(tmp_path, labels=["a"])


def test_patterns() -> None:
    assert list(expanded("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expanded("{x,y}/{0..1}")) == ["x/0", "x/1", "y/0", "y/1"]
    for wrong in ("a-{3..1}.tar", "a-{}.tar", "a-{0..1.tar"):
        with pytest.raises(UsageError, match=r"data.root=a-"):
            list(expanded(wrong))


def test_json_says_label_split_slice_and_key(tmp_path: Path) -> None:
    files = {}
    for i in range(4):
        files[f"s/{i}.png"] = picture(i)
        files[f"s/{i}.json"] = json.dumps(
            {"label": "ab"[i % 2], "split": "val" if i else "train", "slice": "n", "key": f"k{i}"}
        ).encode()
    written(tmp_path / "all.tar", files)
    assert facts(shards(tmp_path)) == {(f"k{i}", i % 2, "val" if i else "train", "n") for i in range(4)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.png": b"x"}, r"sample 1 has no label"),
        ({"1.cls": b"0"}, r"sample 1 has 0 images among cls"),
        ({"1.png": b"x", "1.jpg": b"x", "1.cls": b"0"}, r"sample 1 has 2 images"),
        ({"1.png": b"x", "2.png": b"y", "1.cls": b"0", "2.cls": b"0"}, r"sample 1 has no label"),
        ({"1.png": b"x", "1.json": b"[1]"}, r"1.json cannot be read"),
        ({"1.png": b"x", "1.json": b'{"label": 1, "split": "later"}'}, r"has the split 'later'"),
        ({"1.png": b"x", "1.cls": b"\xff"}, r"1.cls is no UTF-8"),
        ({}, r"hold no samples"),
    ],
)
def test_what_is_no_sample_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    written(tmp_path / "train.tar", files)
    with pytest.raises(InputRefused, match=message):
        shards(tmp_path)


def test_damaged_and_compressed_tars_are_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "train.tar", webdataset(0, 6)).read_bytes()
    with tarfile.open(tmp_path / "train.tar") as tar:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in tar]
    for cut in (ends[-1], ends[3], ends[3] + 100, ends[-1] - 600, 100):
        (tmp_path / "train.tar").write_bytes(whole[:cut])
        with pytest.raises(InputRefused, match=r"train.tar is no whole tar"):
            shards(tmp_path)
    (tmp_path / "train.tar").write_bytes(whole[: ends[3]] + b"\x55" * 512 + whole[ends[3] + 512 :])
    with pytest.raises(InputRefused, match=r"train.tar is no whole tar"):
        shards(tmp_path)
    (tmp_path / "train.tar").unlink()
    with tarfile.open(tmp_path / "train.tar.gz", "w:gz"):
        pass
    with pytest.raises(InputRefused, match=r"train.tar.gz is compressed: unpack it"):
        shards(tmp_path)
    (tmp_path / "train.tar.gz").rename(tmp_path / "train.tar")
    with pytest.raises(InputRefused, match=r"train.tar is no whole tar .* or is compressed"):
        shards(tmp_path)


def test_a_shard_that_changes_or_goes_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "train.tar", webdataset(0, 6))
    images = shards(tmp_path, val_fraction=0, test_fraction=0)
    path.write_bytes(path.read_bytes()[:1000])
    assert "train.tar:00005.png is cut short" in dict(audit(images).unreadable)["train/00005.png"]
    path.unlink()
    assert "train.tar:00005.png cannot be read" in dict(audit(images).unreadable)["train/00005.png"]


def test_a_shard_is_indexed_once_while_it_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "train.tar", webdataset(0, 6))
    before = shards(tmp_path).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_indexed", lambda shard: pytest.fail("indexed again"))
        assert shards(tmp_path).fingerprint() == before
    written(path, webdataset(0, 7))
    assert len(shards(tmp_path)) == 7


@pytest.mark.parametrize("gib", ["1", "0"])
def test_shards_in_a_store_cached_or_read_by_parts(
    class_folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: str
) -> None:
    monkeypatch.setenv(GIB_VARIABLE, gib)
    images = folder(class_folder())
    memory = fsspec.filesystem("memory")
    for path in pack(images, tmp_path / "packed", shard_bytes=4000):
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    memory.pipe("/shards/labels.txt", (tmp_path / "packed" / "labels.txt").read_bytes())
    try:
        for root in ("memory://shards", "memory://shards/*.tar"):
            remote = shards(root)
            assert facts(remote) == facts(images)
            assert remote.fingerprint() == images.fingerprint()
            assert audit(remote).unreadable == ()
        placed = place_pixels(remote.split("train"), SPEC, cache=tmp_path / "pixels", memory_bytes=0)
        assert isinstance(placed, Undecoded) == (gib == "0")
        chosen = torch.tensor([3, 0, 5])
        if isinstance(placed, Undecoded):
            placed.prepare(chosen)
        expected = load_pixels(remote.split("train"), SPEC).images_NCHW[chosen]
        assert torch.equal(placed.read(chosen), expected)
    finally:
        memory.rm("/shards", recursive=True)


def order_of(sizes: tuple[int, ...], **shuffle: int) -> ShardOrder:
    shard_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return ShardOrder(shard_N, Shuffle(**shuffle))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("sizes", [(50,) * 16, (7, 90, 31, 64, 5, 80, 1, 33), (200,), (3, 2)])
@pytest.mark.parametrize("batch_size", [16, 12, 7, 500])
def test_every_image_comes_once_and_epochs_differ(sizes: tuple[int, ...], batch_size: int) -> None:
    order = order_of(sizes, buffer=40, lanes=8)
    epochs = [order.order(batch_size=batch_size, seed=1, epoch=epoch) for epoch in range(2)]
    for found in epochs:
        assert sorted(found.tolist()) == list(range(sum(sizes)))
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[1], order.order(batch_size=batch_size, seed=1, epoch=1))
    assert not torch.equal(epochs[1], order.order(batch_size=batch_size, seed=2, epoch=1))


@pytest.mark.parametrize("world", [2, 4])
def test_each_process_reads_its_own_shards(world: int) -> None:
    order = order_of((50,) * 16, buffer=100, lanes=4)
    own: list[set[int]] = [set() for _ in range(world)]
    for epoch in range(3):
        batches = order.order(batch_size=16, seed=0, epoch=epoch).split(16)
        for batch in batches[: 800 // 16]:
            for rank, part in enumerate(batch.tensor_split(world)):
                own[rank] |= set(order.shard_N[part].tolist())
    assert [len(shards) for shards in own] == [16 // world] * world
    assert not set.intersection(*own)


def test_a_process_holds_few_shards_at_a_time() -> None:
    order = order_of((100,) * 32, buffer=100, lanes=1)
    found = order.shard_N[order.order(batch_size=16, seed=0, epoch=0)]
    last = {int(shard): place for place, shard in enumerate(found.tolist())}
    first = {int(shard): place for place, shard in reversed(list(enumerate(found.tolist())))}
    open_now = [sum(first[shard] <= place <= last[shard] for shard in first) for place in range(0, len(found), 16)]
    assert max(open_now) <= 3
    assert torch.unique(found[:64]).numel() >= 2, "but a batch mixes shards"


def test_a_shuffle_says_what_is_wrong() -> None:
    for wrong in ({"buffer": -1}, {"lanes": 0}):
        with pytest.raises(UsageError, match="buffer must be at least 0 and lanes at least 1"):
            Shuffle(**wrong)
