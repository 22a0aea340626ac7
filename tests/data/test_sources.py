"""Every data set found from the files keeps the same promises; the built-in ones also have their own."""

import importlib
import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from toolkit.bundle import Preprocessing
from toolkit.data import ImageSet, audit, load_pixels
from toolkit.data.elpv import elpv
from toolkit.data.registry import DATASETS, dataset
from toolkit.data.shapes import shapes
from toolkit.data.torchvision_dataset import torchvision_dataset
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

CONF = Path(__file__).parents[2] / "conf" / "data"
OFFLINE = sorted(
    name
    for name, function in DATASETS.items()
    if not any(parameter.default is inspect.Parameter.empty for parameter in inspect.signature(function).parameters.values())
)


def test_the_known_sources_are_found() -> None:
    assert {"folder", "elpv", "digits", "shapes", "torchvision_dataset"} <= set(DATASETS)
    assert dataset("digits") is DATASETS["digits"]
    with pytest.raises(UsageError, match=r"Unknown data set 'digit'. Did you mean digits"):
        dataset("digit")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_a_source_and_only_its_parameters(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    module, _, name = content.pop("_target_").rpartition(".")
    function = getattr(importlib.import_module(module), name)
    assert DATASETS[name] is function
    parameters = inspect.signature(function).parameters
    assert set(content) == set(parameters), "a config lists every parameter, so that --cfg job shows them"
    same = {key for key, value in content.items() if parameters[key].default == value}
    assert path.stem == "elpv_mono" or set(content) - same == {key for key, value in content.items() if value == "???"}


@pytest.mark.parametrize("name", OFFLINE)
def test_every_offline_source_is_sound_and_repeats(name: str) -> None:
    images, again = DATASETS[name](), DATASETS[name]()
    assert isinstance(images, ImageSet)
    assert images.fingerprint() == again.fingerprint()
    counts = Counter((sample.split, sample.target) for sample in images.samples)
    assert all(counts[split, k] for split in ("train", "val", "test") for k in range(len(images.labels)))
    share = Counter(sample.split for sample in images.samples)
    assert share["train"] / len(images) == pytest.approx(0.6, abs=0.02)
    assert share["test"] / len(images) == pytest.approx(0.25, abs=0.02)
    assert DATASETS[name](seed=1).fingerprint() != images.fingerprint()


@pytest.mark.parametrize("name", sorted(set(OFFLINE) - {"elpv"}))
def test_every_small_offline_source_passes_its_audit(name: str) -> None:
    assert audit(DATASETS[name]()).problems == ()


def test_elpv_has_the_published_counts_and_slices(capsys: pytest.CaptureFixture[str]) -> None:
    images = elpv()
    assert images.labels == ("functional", "defective")
    counts = Counter((sample.slice, sample.target) for sample in images.samples)
    assert counts == {("mono", 0): 588 + 117, ("mono", 1): 56 + 313, ("poly", 0): 920 + 178, ("poly", 1): 50 + 402}
    assert "NC" in images.licence
    digests = images.content_digests()
    assert len(set(digests)) == len(digests)


def test_elpv_mono_is_a_part_of_the_same_splits() -> None:
    whole = {sample.key: sample.split for sample in elpv().samples}
    mono = elpv(slices=["mono"])
    assert len(mono) == 1074
    assert all(whole[sample.key] == sample.split for sample in mono.samples)
    with pytest.raises(UsageError, match="Did you mean mono"):
        elpv(slices=["monno"])


def test_elpv_images_load() -> None:
    images = elpv(slices=["poly"]).split("val")
    pixels = load_pixels(images, Preprocessing(size_px=(32, 32)))
    assert len(pixels) == len(images)
    assert 20 < float(pixels.images_NCHW.float().mean()) < 200


def test_elpv_tells_its_licence_once(capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.data.elpv import _tell_licence

    _tell_licence.cache_clear()
    elpv()
    elpv()
    assert capsys.readouterr().err.count("non-commercial") == 1


def test_elpv_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"'elpv-dataset'.*model-upgrade-toolkit\[demo\]"):
        elpv()


@pytest.mark.parametrize(("text", "message"), [("images/a.png 0.5\n", "line 1"), ("a b c\n", "line 1"), ("", "is empty")])
def test_elpv_with_a_damaged_label_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputRefused, match=message):
        elpv(root=tmp_path)


def test_shapes_are_deterministic_and_have_any_size() -> None:
    assert shapes(20).fingerprint() == shapes(20).fingerprint()
    assert np.asarray(shapes(1, size_px=48).samples[0].source).shape == (48, 48, 3)
    assert shapes(40, num_labels=4).labels == ("circle", "square", "triangle", "cross")
    assert set(shapes(40).slices()) == {"dark", "bright"}
    for wrong in ({"num_samples": 0}, {"size_px": 4}, {"num_labels": 9}, {"noise": -1.0}):
        with pytest.raises(UsageError, match="shapes needs"):
            shapes(**wrong)  # pyright: ignore[reportArgumentType]


def test_torchvision_in_memory_keeps_its_splits() -> None:
    arguments = {"size": 30, "image_size": [3, 8, 8], "num_classes": 3}
    images = torchvision_dataset("FakeData", ".", kwargs=arguments)
    assert images.labels == ("0", "1", "2")
    assert Counter(sample.split for sample in images.samples)["train"] < 30
    assert np.asarray(images.samples[0].source).shape == (8, 8, 3)


def test_torchvision_from_files_stays_on_disk(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(8):
            Image.new("L", (4, 4), i * 8).save(tmp_path / label / f"{i}.png")
    images = torchvision_dataset("ImageFolder", tmp_path)
    assert images.labels == ("a", "b")
    assert all(isinstance(sample.source, Path) for sample in images.samples)


def test_torchvision_with_train_and_test_parts(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, num in (("train", 40), ("t10k", 12)):
        images = random.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        header = np.array([2051, num, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(num, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, num], dtype=">i4").tobytes() + labels.tobytes())
    images = torchvision_dataset("MNIST", tmp_path, val_fraction=0.25)
    assert images.labels[3] == "3 - three"
    assert Counter(sample.split for sample in images.samples) == {"train": 30, "val": 10, "test": 12}


def test_torchvision_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unknown torchvision data set 'CIFAR11'. Did you mean CIFAR10"):
        torchvision_dataset("CIFAR11", tmp_path)
    for name in ("CIFAR10", "Flowers102", "EuroSAT"):
        with pytest.raises(InputRefused, match=rf"{name} is not under .* or set data.download=true"):
            torchvision_dataset(name, tmp_path)
    with pytest.raises(UsageError, match="refuses its arguments"):
        torchvision_dataset("FakeData", tmp_path, kwargs={"colour": "red"})
