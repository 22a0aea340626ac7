"""What has aged is counted, and what no longer works is found by trying it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checks.planted import stored, trained, write_graph
from toolkit.backends import open_runner
from toolkit.bundle import GOLDEN, ONNX, Architecture, Bundle, Store
from toolkit.bundle.report import package_versions
from toolkit.checks import obsolescence as module
from toolkit.checks.obsolescence import obsolescence, releases_behind


def with_golden(store: Store, tmp_path: Path, *, offset: float = 0.0, packages: dict[str, str] | None = None) -> Bundle:
    """An exported bundle with golden answers that are off by `offset`, made with `packages`."""
    plain = stored(store, trained(num_epochs=8), graph=tmp_path / "first.onnx")
    pictures = torch.randint(0, 255, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    logits = torch.from_numpy(open_runner(plain)(pictures.numpy()))
    golden = tmp_path / "golden.safetensors"
    save_file({"images": pictures, "logits": logits + offset}, golden)
    made = dataclasses.replace(plain.manifest.lineage, packages=package_versions() if packages is None else packages)
    files = {GOLDEN: golden, ONNX: write_graph(trained(num_epochs=8), tmp_path / "net.onnx")}
    return store.add(dataclasses.replace(plain.manifest, lineage=made), weights=plain.weights(), files=files)


@pytest.mark.parametrize(
    ("made", "here", "behind"),
    [
        ("2.14.1", "2.14.9", 0),
        ("2.10.0+cu128", "2.14.1", 4),
        ("1.13.1", "2.14.1", 11),
        ("3.0", "2.14.1", 0),
        ("0.9", "0.20.0.post1", 11),
    ],
)
def test_releases_behind(made: str, here: str, behind: int) -> None:
    assert releases_behind(made, here) == behind


def test_a_bundle_of_today_works_and_is_not_exported_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_onnx", lambda *_, **__: pytest.fail("exported again"))
    found = obsolescence(with_golden(store, tmp_path))
    assert found.broken == ()
    assert found.releases_behind == 0
    assert found.opset == 20
    assert found.newest_opset >= 20
    assert "golden answers" in found.tried["answers"]


def test_a_bundle_of_another_torch_is_exported_for_trial(store: Store, tmp_path: Path) -> None:
    found = obsolescence(with_golden(store, tmp_path, packages={"torch": "1.8.0", "onnx": "1.9.0"}))
    assert found.tried["export"] == "works"
    assert found.releases_behind >= 12


def test_changed_answers_and_an_architecture_that_is_gone_are_broken(store: Store, tmp_path: Path) -> None:
    found = obsolescence(with_golden(store, tmp_path, offset=0.5))
    assert len(found.broken) == 1
    assert "golden answers differ" in found.broken[0]
    bundle = stored(store, trained(num_epochs=8), graph=tmp_path / "again.onnx")
    gone = store.add(dataclasses.replace(bundle.manifest, architecture=Architecture("tests/gone")), weights=bundle.weights())
    broken = obsolescence(gone).broken
    assert any(what.startswith("restore fails") for what in broken)
