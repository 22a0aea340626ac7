"""Images in an object store: the same data set as on disk, fetched once, whole or not at all."""

import hashlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from toolkit.bundle import Preprocessing
from toolkit.bundle.machine import GIB_VARIABLE
from toolkit.data import ImageSet, audit, load_pixels
from toolkit.data import downloads as module
from toolkit.data.downloads import RemoteFile, downloads, remote_files
from toolkit.data.folder import folder
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

Write = Callable[..., Path]
SPEC = Preprocessing(size_px=(8, 8))
URL = "memory://bucket/pets"


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    yield
    memory = fsspec.filesystem("memory")
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the store is asked for."""
    asked: list[str] = []
    plain = MemoryFileSystem._open

    def counted(self: Any, path: str, mode: str = "rb", **named: Any) -> Any:
        if mode == "rb":
            asked.append(path)
        return plain(self, path, mode, **named)

    monkeypatch.setattr(MemoryFileSystem, "_open", counted)
    return asked


def uploaded(root: Path) -> str:
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            memory.pipe(f"/bucket/pets/{path.relative_to(root).as_posix()}", path.read_bytes())
    return URL


def facts(images: ImageSet) -> list[tuple[str, int, str, str]]:
    return [(sample.key, sample.target, sample.split, sample.slice) for sample in images.samples]


def leftovers() -> list[Path]:
    return list(downloads().directory.rglob(".tmp-*"))


def test_a_url_gives_the_data_set_of_the_folder(class_folder: Write) -> None:
    root = class_folder()
    class_folder(("cat", "dog"), num=3, root=root / "cat" / "2024", start=90)  # nested: below cat, whatever it is called
    (root / "cat" / ".hidden.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image")
    local, remote = folder(root), folder(uploaded(root))
    assert facts(remote) == facts(local)
    assert (remote.name, remote.labels) == (local.name, local.labels)
    assert remote.fingerprint() == local.fingerprint()
    assert np.array_equal(load_pixels(remote, SPEC).images_NCHW, load_pixels(local, SPEC).images_NCHW)
    assert audit(remote).problems == ()
    assert facts(folder(root.as_uri())) == facts(local), "a file:// URL is a folder of this machine"


def test_split_directories_and_labels_in_a_store(class_folder: Write, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for start, split in enumerate(("train", "valid", "test")):
        class_folder(num=4, root=root / split, start=start * 10)
    assert facts(folder(uploaded(root), labels=["dog", "cat"])) == facts(folder(root, labels=["dog", "cat"]))
    with pytest.raises(InputRefused, match=r"memory://bucket/pets has images labelled dog"):
        folder(URL, labels=["cat"])


@pytest.mark.parametrize("where", ["below", "url", "local"])
def test_a_csv_lists_images_in_a_store(class_folder: Write, tmp_path: Path, where: str) -> None:
    root = class_folder()
    text = "path,label,slice\ncat/cat000.png,cat,night\ndog/dog001.png,dog,day\n"
    (root / "list.csv").write_text(text)
    (tmp_path / "list.csv").write_text(text)
    csv = {"below": "list.csv", "url": f"{uploaded(root)}/list.csv", "local": tmp_path / "list.csv"}[where]
    images = folder(uploaded(root), csv=csv, val_fraction=0, test_fraction=0)
    assert facts(images) == [("cat/cat000.png", 0, "train", "night"), ("dog/dog001.png", 1, "train", "day")]
    (root / "list.csv").write_text(text + "dog/gone.png,dog,day\n")
    with pytest.raises(InputRefused, match=r"lists 1 files that are not there: dog/gone.png"):
        folder(uploaded(root), csv="list.csv")


def test_each_file_is_fetched_once_whatever_is_done_with_it(class_folder: Write, reads: list[str]) -> None:
    images = folder(uploaded(class_folder()))
    assert len(reads) == len(images)
    reads.clear()
    for again in (images, folder(URL)):
        again.fingerprint()
        audit(again)
        load_pixels(again, SPEC)
    assert reads == [], "the splits needed the content, and that was the one time"
    before = images.fingerprint()
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/pets/cat/cat000.png", memory.cat("/bucket/pets/dog/dog000.png"))
    reads.clear()
    assert folder(URL).fingerprint() != before, "an object that was overwritten is another"
    assert reads.count("/bucket/pets/cat/cat000.png") == 1


def test_threads_that_want_one_file_fetch_it_once(reads: list[str]) -> None:
    fsspec.filesystem("memory").pipe("/bucket/pets/one.bin", os.urandom(10_000))
    file = remote_files(URL)["one.bin"]
    start = threading.Barrier(6)

    def read(_: int) -> bytes:
        start.wait()
        return file.read()

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(read, range(6)))) == 1
    assert len(reads) == 1


class Cut(MemoryFileSystem):
    """A memory store whose files end early, or fail, as often as `faults` says."""

    faults = 0
    failure: Exception | None = None

    def _open(self, path: str, *arguments: Any, **named: Any) -> Any:
        content = super()._open(path, *arguments, **named).getvalue()
        if not Cut.faults:
            return io.BytesIO(content)
        Cut.faults -= 1
        if Cut.failure is not None:
            raise Cut.failure
        return io.BytesIO(content[: len(content) // 2])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Cut]:
    fsspec.filesystem("memory").pipe("/bucket/pets/one.bin", b"0123456789" * 100)
    plain = module.opened
    monkeypatch.setattr(module, "opened", lambda url, purpose: (Cut(), plain(url, purpose)[1]))
    monkeypatch.setattr(Cut, "faults", 0)
    monkeypatch.setattr(Cut, "failure", None)
    return Cut


@pytest.mark.parametrize("failure", [None, ConnectionResetError("reset by peer")])
def test_a_transfer_that_breaks_is_tried_again(failing: type[Cut], failure: Exception | None) -> None:
    file = remote_files(URL)["one.bin"]
    failing.faults, failing.failure = module.ATTEMPTS - 1, failure
    assert file.read() == b"0123456789" * 100
    assert file.digest() == hashlib.sha256(b"0123456789" * 100).hexdigest()


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (None, InputRefused, r"one.bin gave 500 bytes of the 1000 it was listed with"),
        (ConnectionResetError("reset by peer"), EnvironmentProblem, r"one.bin cannot be read \(ConnectionResetError"),
        (PermissionError("Forbidden"), EnvironmentProblem, r"one.bin cannot be read: no credentials, or none that may"),
        (FileNotFoundError("gone"), InputRefused, r"one.bin is not there"),
    ],
)
def test_what_stays_broken_leaves_nothing_half_written(
    failing: type[Cut], failure: Exception | None, kind: type[Exception], message: str
) -> None:
    file = remote_files(URL)["one.bin"]
    failing.faults, failing.failure = 100, failure
    with pytest.raises(kind, match=message):
        file.read()
    assert leftovers() == []
    assert list(module._entries(downloads().directory)) == []
    failing.faults = 0
    assert len(file.read()) == 1000


def test_an_image_that_vanished_is_named_and_the_others_are_read(class_folder: Write) -> None:
    images = folder(uploaded(class_folder(num=20)), val_fraction=0, test_fraction=0)
    fsspec.filesystem("memory").rm("/bucket/pets/cat/cat003.png")
    found = audit(images)
    assert [key for key, _ in found.unreadable] == ["cat/cat003.png"]
    assert "memory://bucket/pets/cat/cat003.png is not there" in found.unreadable[0][1].replace("memory:///", "memory://")


def test_the_cache_keeps_to_its_size_and_reads_what_it_may_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    contents = {f"{i}.bin": os.urandom(1000) for i in range(20)}
    for name, content in contents.items():
        memory.pipe(f"/bucket/pets/{name}", content)
    memory.pipe("/bucket/pets/large.bin", large := os.urandom(9000))
    monkeypatch.setenv(GIB_VARIABLE, str(5500 / 2**30))
    files = remote_files(URL)
    assert all(files[name].read() == content for name, content in contents.items())
    assert sum(size for _, size, _ in module._entries(downloads().directory)) <= 5500
    assert files["large.bin"].read() == large
    assert files["large.bin"].part(10, 20) == large[10:30]
    assert files["large.bin"].digest() == hashlib.sha256(large).hexdigest()
    assert downloads().path(files["large.bin"]) is None
    assert all(files[name].digest() == hashlib.sha256(content).hexdigest() for name, content in contents.items())


def test_a_damaged_cache_mends_itself() -> None:
    fsspec.filesystem("memory").pipe("/bucket/pets/one.bin", b"x" * 1000)
    file = remote_files(URL)["one.bin"]
    assert file.read() == b"x" * 1000
    path = downloads().path(file)
    assert path is not None
    path.write_bytes(b"x" * 10)
    (known,) = (downloads().directory / "known").iterdir()
    known.write_bytes(known.read_bytes() + b'{"torn')
    module._downloads.cache_clear()
    assert file.read() == b"x" * 1000
    path.unlink()
    assert file.read() == b"x" * 1000


def test_a_killed_download_is_swept_up() -> None:
    fsspec.filesystem("memory").pipe("/bucket/pets/one.bin", b"x" * 1000)
    (downloads().directory / ".tmp-killed").mkdir(parents=True)
    (downloads().directory / ".tmp-killed" / "file").write_bytes(b"half")
    remote_files(URL)["one.bin"].read()
    assert leftovers() == []


def test_a_store_that_cannot_be_opened_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputRefused, match=r"memory://bucket/nothing (is not there|holds no files)"):
        folder("memory://bucket/nothing")
    with pytest.raises(UsageError, match=r"nosuch://bucket.*Give a folder, a file or a URL such as s3://bucket/prefix"):
        folder("nosuch://bucket")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"s3://bucket/pets needs the package 's3fs'.*model-upgrade-toolkit\[s3\]"):
        folder("s3://bucket/pets")


def test_a_remote_file_is_data() -> None:
    assert RemoteFile("memory://a", 1, "x") == RemoteFile("memory://a", 1, "x")
    assert str(RemoteFile("memory://a", 1, "x")) == "memory://a"
