"""A file of the old model, TorchScript or ONNX, proves a checkpoint as the old code would."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from tests.checks.planted import PREPROCESSING, trained
from tests.migration.graph_forms import write_form
from tests.models.programs import How, write_program
from toolkit.bundle import Store
from toolkit.errors import CheckFailed, InputRefused, UsageError
from toolkit.stages.adopt import adopt


class Pixels(nn.Module):
    """A net behind its normalisation, as a service would have saved it."""

    def __init__(self, net: nn.Module, *, probabilities: bool = False) -> None:
        super().__init__()
        self.net, self.probabilities = net, probabilities

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of pixels 0..255."""
        logits = self.net(images / 127.5 - 1)
        return logits.softmax(1) if self.probabilities else logits


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(trained(num_epochs=1).state_dict(), tmp_path / "old.pt")
    return tmp_path / "old.pt"


def proof(store: Store, checkpoint: Path, legacy: str | Path) -> dict[str, Any]:
    """What the report says of the comparison."""
    bundle = adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=str(legacy))
    report = store.reports(bundle.digest)["adopt"]
    assert report.verdict == "pass"
    assert report.details["legacy"]["num_images"] >= 10
    return report.details["legacy"]


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_a_torchscript_twin_is_bit_exact(how: How, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    found = proof(store, checkpoint, write_program(trained(num_epochs=1), tmp_path / "old.ts", how=how))
    assert found["bit_exact"]
    assert found["run_as"] == "TorchScript, normalised"


def test_the_reading_under_which_a_twin_agrees_is_found(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    found = proof(store, checkpoint, write_program(Pixels(trained(num_epochs=1)).eval(), tmp_path / "old.ts", how="traced"))
    assert found["run_as"] == "TorchScript, pixels"
    assert found["bit_exact"] or 0 < found["error_floors"] <= 8


def test_a_frozen_program_is_held_against_float32s_own_rounding(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    """Its weights are float32 constants, so there is no float64 run of it."""
    found = proof(store, checkpoint, write_program(trained(num_epochs=1), tmp_path / "old.ts", how="frozen"))
    assert found["bit_exact"] or 0 < found["error_floors"] <= 8


@pytest.mark.parametrize(
    ("form", "run_as"),
    [
        ("normalised", "ONNX, normalised"),
        ("pixels", "ONNX, pixels"),
        ("uint8_nhwc", "ONNX, pixels"),
        ("fixed_batch", "ONNX, pixels"),
    ],
)
def test_an_onnx_twin_agrees_within_float32s_own_rounding(
    form: str, run_as: str, store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    found = proof(store, checkpoint, write_form(form, tmp_path / "old.onnx", num_epochs=1))
    assert found["run_as"] == run_as
    assert found["bit_exact"] or 0 <= found["error_floors"] <= 8
    assert found["top1_agreement"] == 1


def test_a_twin_that_answers_with_probabilities_is_compared_with_them(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    graph = write_form("probabilities", tmp_path / "old.onnx", num_epochs=1)
    assert proof(store, checkpoint, graph)["run_as"] == "ONNX, pixels"
    script = write_program(Pixels(trained(num_epochs=1), probabilities=True).eval(), tmp_path / "old.ts", how="traced")
    found = proof(store, checkpoint, f"{script}(input='pixels', output='probabilities')")
    assert found["run_as"] == "TorchScript, pixels"


@pytest.mark.parametrize("kind", ["program", "graph"])
@pytest.mark.parametrize("eps", [2e-5, 1e-3])
def test_another_epsilon_is_not_rounding(kind: str, eps: float, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    if kind == "graph":
        path = write_form("pixels", tmp_path / "old.onnx", num_epochs=1)
        model = onnx.load(path)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = eps
        onnx.save(model, path)
    else:
        net = copy.deepcopy(trained(num_epochs=1))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps
        path = write_program(net, tmp_path / "old.ts", how="traced")
    with pytest.raises(CheckFailed, match=rf"legacy file .*{path.name}.*not rounding"):
        adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=str(path))
    assert store.digests() == []


def test_what_is_no_twin_is_refused(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*absent\.onnx"):
        adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=str(tmp_path / "absent.onnx"))
    with pytest.raises(InputRefused, match=r"old\.pt is not an ONNX graph"):
        adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=str(checkpoint))
    graph = write_form("pixels", tmp_path / "old.onnx", num_epochs=1)
    for settings in ("('pixels')", "(input=open)", "(inputs='pixels')", "(input='floats')"):
        with pytest.raises(UsageError, match=r"legacy|kwargs"):
            adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=f"{graph}{settings}")
    assert store.digests() == []


def test_a_twin_in_the_users_reading_is_not_read_otherwise(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    graph = write_form("pixels", tmp_path / "old.onnx", num_epochs=1)
    with pytest.raises(CheckFailed, match="ONNX, normalised"):
        adopt("tests/tiny", store=store, checkpoint=checkpoint, legacy=f"{graph}(input='normalised')")


def test_a_program_given_as_checkpoint_gives_its_weights(store: Store, tmp_path: Path) -> None:
    net = trained(num_epochs=1)
    path = write_program(net, tmp_path / "old.pt")
    bundle = adopt("tests/tiny", store=store, checkpoint=path, legacy=str(path))
    report = store.reports(bundle.digest)["adopt"]
    assert report.value("tensors exact") == len(net.state_dict())
    assert "TorchScript program" in report.details["notes"][0]
    assert bundle.manifest.preprocessing == PREPROCESSING
    with pytest.raises(InputRefused, match="frozen into it"):
        adopt("tests/tiny", store=store, checkpoint=write_program(net, tmp_path / "frozen.pt", how="frozen"))
