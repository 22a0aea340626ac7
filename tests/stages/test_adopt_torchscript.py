"""A TorchScript program in service becomes a baseline that answers as it did; what is unsafe is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checks.planted import PREPROCESSING, images, stored, trained
from tests.models.programs import How, write_program
from toolkit.backends import EagerRunner, open_runner
from toolkit.bundle import Store
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed
from toolkit.models.torchscript import FILE
from toolkit.stages.adopt import adopt
from toolkit.stages.ensemble import ensemble
from toolkit.stages.evaluate import evaluate
from toolkit.stages.export import export
from toolkit.stages.finetune import finetune
from toolkit.stages.gate import gate
from toolkit.stages.prune import prune

IMAGES_NCHW = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32)).astype(np.float32)
SIZE = {"size_px": [32, 32]}
NORMALISED: dict[str, Any] = {
    "kwargs": {"input": "normalised"},
    "preprocessing": {**SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
PIXELS: dict[str, Any] = {"kwargs": {"input": "pixels"}, "preprocessing": SIZE}


class Served(nn.Module):
    """The net of `planted` in a form of its own: pixels in, and its answer in the form that `kind` says."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, images: torch.Tensor) -> Any:
        """Scores of pixels."""
        pixels = images.permute(0, 3, 1, 2) if self.kind == "uint8_nhwc" else images
        scores = self.net(pixels.float() / 127.5 - 1)
        if self.kind == "probabilities":
            return scores.softmax(1)
        return (scores, pixels.float().mean()) if self.kind == "tuple" else scores


def plain() -> np.ndarray:
    return EagerRunner(Deployed(trained(num_epochs=1), PREPROCESSING))(IMAGES_NCHW)


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
def test_a_program_answers_as_the_model_it_was_made_of(how: How, store: Store, tmp_path: Path) -> None:
    path = write_program(trained(num_epochs=1), tmp_path / "old.ts", how=how)
    bundle = adopt("torchscript", store=store, checkpoint=path, alias="production", **NORMALISED)
    assert store.open("production") == bundle
    assert bundle.file(FILE).read_bytes() == path.read_bytes()
    taken, given = bundle.manifest.contract.inputs[0], bundle.manifest.contract.outputs[0]
    assert (taken.dtype, taken.dims, taken.layout, taken.meaning) == ("float32", ("batch", 3, 32, 32), "NCHW", "normalised")
    assert (given.dims, given.meaning, bundle.manifest.labels) == (("batch", 3), "logits", ("0", "1", "2"))
    np.testing.assert_allclose(open_runner(bundle)(IMAGES_NCHW), plain(), atol=1e-5)
    report = store.reports(bundle.digest)["adopt"]
    assert "aten::linear" in report.details["operators"]
    assert ("frozen" in " ".join(report.details["notes"])) == (how == "frozen")
    again = adopt("torchscript", store=store, checkpoint=path, **NORMALISED)
    assert again == bundle
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()


@pytest.mark.parametrize("kind", ["pixels", "uint8_nhwc", "probabilities", "tuple"])
def test_every_form_answers_as_the_model_in_its_plain_form(kind: str, store: Store, tmp_path: Path) -> None:
    served = Served(trained(num_epochs=1), kind).eval()
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8) if kind == "uint8_nhwc" else torch.zeros(2, 3, 32, 32)
    path = write_program(served, tmp_path / "old.ts", how="traced", example=example)
    kwargs = {"input": "pixels", **({"layout": "NHWC"} if kind == "uint8_nhwc" else {})}
    bundle = adopt("torchscript", store=store, checkpoint=path, kwargs=kwargs, preprocessing=SIZE)
    answer, expected = open_runner(bundle)(IMAGES_NCHW), plain()
    if kind == "probabilities":
        assert bundle.manifest.contract.outputs[0].meaning == "probabilities"
        expected = torch.from_numpy(expected).log_softmax(1).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4)


class OneByOne(nn.Module):
    """Its batch was baked in when it was traced."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of one image."""
        return self.net(images).view(1, 3)


def test_a_batch_baked_in_is_described_and_served_one_by_one(store: Store, tmp_path: Path) -> None:
    path = write_program(
        OneByOne(trained(num_epochs=1)).eval(), tmp_path / "one.ts", how="traced", example=torch.zeros(1, 3, 32, 32)
    )
    bundle = adopt("torchscript", store=store, checkpoint=path, **NORMALISED)
    assert bundle.manifest.contract.inputs[0].dims[0] == 1
    assert "one image at a time" in store.reports(bundle.digest)["adopt"].details["notes"][0]
    np.testing.assert_allclose(open_runner(bundle)(IMAGES_NCHW), plain(), atol=1e-5)


def test_a_program_is_evaluated_and_is_a_baseline(store: Store, tmp_path: Path) -> None:
    net = trained(num_epochs=3)
    path = write_program(net, tmp_path / "old.ts", how="traced")
    baseline = adopt("torchscript", store=store, checkpoint=path, labels=images().labels, **NORMALISED)
    candidate = stored(store, net, graph=tmp_path / "new.onnx")
    accuracies = [evaluate(bundle, store=store, data=images()).value("accuracy") for bundle in (baseline, candidate)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.003)
    limits = GateLimits({"accuracy": Rule("accuracy.difference", ">=", -0.03, reason="planted", judged_by="interval")})
    report = gate(candidate, store=store, baseline=baseline, data=images(), limits=limits, latency_rounds=10)
    assert report.verdict == "pass"
    for name in ("macs.ratio", "parameters.ratio"):
        assert report.value(name) == 1
    assert report.value("size.baseline") == pytest.approx(path.stat().st_size / 2**20)


def test_what_the_program_does_not_say_is_asked_for(store: Store, tmp_path: Path) -> None:
    path = write_program(trained(num_epochs=1), tmp_path / "old.ts")
    for kwargs, preprocessing, message in (
        ({}, SIZE, "input:pixels.*input:normalised"),
        ({"input": "pixels"}, {}, "preprocessing.size_px"),
        ({"input": "normalised"}, SIZE, "preprocessing.mean and preprocessing.std"),
        ({"input": "pixels"}, NORMALISED["preprocessing"], "leave preprocessing.mean out"),
        ({"input": "pixels", "output": "probabilities"}, SIZE, "do not add up to 1"),
    ):
        with pytest.raises(UsageError, match=message):
            adopt("torchscript", store=store, checkpoint=path, kwargs=kwargs, preprocessing=preprocessing)
    with pytest.raises(UsageError, match="no TorchScript program"):
        adopt("torchscript", store=store, checkpoint=tmp_path / "absent.ts", **PIXELS)
    with pytest.raises(InputRefused, match="3 classes and 2 labels"):
        adopt("torchscript", store=store, checkpoint=path, labels=["a", "b"], **PIXELS)
    with pytest.raises(UsageError, match="its own code"):
        adopt("torchscript", store=store, checkpoint=path, legacy="a:b", **PIXELS)
    assert store.digests() == []


def test_what_is_no_sound_program_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other.ts").write_bytes(b"not a program")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.ts")
    training = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    write_program(training, tmp_path / "training.ts", how="traced")
    write_program(nn.Conv2d(3, 3, 3), tmp_path / "dense.ts")
    write_program(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), tmp_path / "small.ts")
    for name, message in (
        ("other", "damaged"),
        ("weights", "not a TorchScript program"),
        ("training", "saved in training mode"),
        ("dense", "one row of class scores"),
        ("small", "cannot run images of shape"),
    ):
        with pytest.raises(InputRefused, match=rf"{name}\.ts.*{message}"):
            adopt("torchscript", store=store, checkpoint=tmp_path / f"{name}.ts", **PIXELS)
    assert store.digests() == []


def test_a_program_is_not_changed(store: Store, tmp_path: Path) -> None:
    bundle = adopt("torchscript", store=store, checkpoint=write_program(trained(num_epochs=1), tmp_path / "old.ts"), **PIXELS)
    unused: Any = None
    with pytest.raises(InputRefused, match=r"TorchScript program.*could be trained.*teacher"):
        finetune(bundle, store=store, data=unused, schedule=unused, options=unused, trainer=unused, run_dir=tmp_path)
    with pytest.raises(InputRefused, match=r"TorchScript program.*could be pruned"):
        prune(bundle, store=store, data=unused, run_dir=tmp_path, target=unused)
    with pytest.raises(InputRefused, match=r"TorchScript program.*could be exported"):
        export(bundle, store=store, data=unused)
    with pytest.raises(InputRefused, match="TorchScript program"):
        ensemble([bundle, stored(store, trained(num_epochs=1))], store=store)


def test_a_bundle_made_elsewhere_is_judged_again_when_it_is_opened(store: Store, tmp_path: Path) -> None:
    """Whoever writes a bundle writes its hashes too, so a matching digest says nothing about what the program does."""

    class Evil(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch.save([images], "mark")
            return images.mean((2, 3))

    made = adopt("torchscript", store=store, checkpoint=write_program(trained(num_epochs=1), tmp_path / "old.ts"), **PIXELS)
    forged = store.add(made.manifest, files={FILE: write_program(Evil(), tmp_path / "evil.ts")})
    assert json.loads((forged.path / "manifest.json").read_text())["architecture"]["key"] == "torchscript"
    with pytest.raises(InputRefused, match="writes a file"):
        open_runner(store.open(forged.digest))
    assert not Path("mark").exists()
