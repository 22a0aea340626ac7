"""What has arrived is read once: growing logs, rotation, half-written lines, images, object stores."""

import json
from pathlib import Path

import fsspec
import pytest

from toolkit.data import arrivals
from toolkit.data.arrivals import Marks, Place, to_look_at_again
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError


def line(number: int) -> bytes:
    return json.dumps({"id": number, "label": "a"}).encode() + b"\n"


def read(place: Place, marks: Marks) -> tuple[list[bytes], Marks]:
    found: list[bytes] = []
    for batch in place.batches(marks):
        found += batch.lines
        marks = batch.marks
    return [json.loads(one)["id"] for one in found], marks


def test_a_growing_log_is_read_once_and_a_line_without_its_end_waits(tmp_path: Path) -> None:
    log, place, marks = tmp_path / "serving.jsonl", Place(str(tmp_path)), Marks()
    log.write_bytes(line(1) + line(2) + line(3)[:9])
    found, marks = read(place, marks)
    assert found == [1, 2]
    log.write_bytes(line(1) + line(2) + line(3) + line(4)[:-1])
    found, marks = read(place, marks)
    assert found == [3, 4], "a whole object needs no newline after it: nothing may follow in an object store"
    with log.open("ab") as stream:
        stream.write(b"\n" + line(5))
    found, marks = read(place, marks)
    assert found == [5]
    assert read(place, marks)[0] == []


@pytest.mark.parametrize("rotated", ["serving.log.1", "a-serving.log"])
def test_a_log_that_is_rotated_is_not_counted_again(tmp_path: Path, rotated: str) -> None:
    log, place, marks = tmp_path / "serving.log", Place(str(tmp_path)), Marks()
    log.write_bytes(line(1) + line(2))
    found, marks = read(place, marks)
    with log.open("ab") as stream:
        stream.write(line(3))
    log.rename(tmp_path / rotated)
    log.write_bytes(line(4))
    found, marks = read(place, marks)
    assert sorted(found) == [3, 4]
    assert read(place, marks)[0] == []


def test_a_batch_of_a_long_log_can_be_resumed_after_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LINES_A_BATCH", 7)
    monkeypatch.setattr(arrivals, "BLOCK_BYTES", 300)
    (tmp_path / "log.jsonl").write_bytes(b"".join(line(i) for i in range(50)))
    place, marks, found = Place(str(tmp_path)), Marks(), []
    while batch := next(iter(place.batches(marks)), None):
        found += [json.loads(one)["id"] for one in batch.lines]
        marks = batch.marks
    assert found == list(range(50))


def test_images_come_once_and_an_unreadable_one_again_when_it_has_grown(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.png").write_bytes(b"whole")
    (tmp_path / "day" / "b.jpg").write_bytes(b"half")
    (tmp_path / "day" / ".c.jpg").write_bytes(b"hidden")
    (tmp_path / "day" / "notes.txt").write_bytes(b"no image")
    place = Place(str(tmp_path))
    (batch,) = place.batches(Marks())
    assert {Path(name).name for name in batch.images} == {"a.png", "b.jpg"}
    half = next(name for name in batch.images if name.endswith("b.jpg"))
    marks = to_look_at_again(batch.marks, {half: 4})
    assert list(place.batches(marks)) == []
    Path(half).write_bytes(b"whole now")
    (batch,) = place.batches(marks)
    assert batch.images == {half: b"whole now"}
    assert batch.marks.unreadable == {}
    assert list(place.batches(batch.marks)) == []


def test_an_object_store_prefix_works_like_a_folder() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/log/1.jsonl", line(1) + line(2))
    try:
        place = Place("memory://bucket/log")
        found, marks = read(place, Marks())
        assert found == [1, 2]
        memory.pipe("/bucket/log/2.jsonl", line(3))
        assert read(place, marks)[0] == [3]
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputRefused, match="does not exist"):
        list(Place(str(tmp_path / "nowhere")).batches(Marks()))
    with pytest.raises(UsageError, match="s3://bucket"):
        Place("nosuch://bucket")
    known = dict(fsspec.registry.known_implementations if hasattr(fsspec.registry, "known_implementations") else {})
    if "s3" in known:
        monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
        with pytest.raises(EnvironmentProblem, match=r"model-upgrade-toolkit\[s3\]"):
            Place("s3://bucket/prefix")
