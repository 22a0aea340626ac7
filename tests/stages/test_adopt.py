"""Adopt end to end: what is stored, what the report says, what is refused, and that nothing half-written stays."""

from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.bundle import Architecture, Preprocessing, Store
from toolkit.cli import main
from toolkit.errors import CheckFailed, InputRefused, UsageError
from toolkit.models import build, register, registry, restore
from toolkit.stages.adopt import adopt

CODE = """
from torch import nn
def make(num_classes=3, eps=1e-5):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
def named(num_classes):
    return make(int(num_classes))
"""


def make(num_classes: int = 3) -> nn.Module:
    """The new code: the same layers under other names."""

    class New(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.stem(images_NCHW)).relu().mean((2, 3)))

    return New()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register("mine", make, Preprocessing(size_px=(12, 12)))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A half-precision Lightning checkpoint of the old code, which lies beside it."""
    (tmp_path / "legacy_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    import legacy_code  # pyright: ignore[reportMissingImports]

    state = legacy_code.make(5).half().state_dict()
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 4}, path)
    return path


def test_a_legacy_checkpoint_becomes_a_bundle_with_its_evidence(store: Store, checkpoint: Path) -> None:
    bundle = adopt("mine", store=store, checkpoint=checkpoint, legacy="legacy_code:make(5)", alias="production")
    assert store.open("production") == bundle
    assert bundle.manifest.labels == ("0", "1", "2", "3", "4")
    assert bundle.manifest.architecture.kwargs == {"num_classes": 5}
    assert bundle.manifest.preprocessing.size_px == (12, 12)
    assert bundle.manifest.contract.outputs[0].dims == ("batch", 5)
    report = store.reports(bundle.digest)["adopt"]
    assert report.verdict == "pass"
    assert report.value("tensors order") == 9
    assert report.details["legacy"]["top1_agreement"] == 1
    assert {row["how"] for row in report.details["tensors"]} == {"order"}
    notes = " ".join(report.details["notes"])
    for part in ("'state_dict'", "'model.'", "float16 to float32 (exact)"):
        assert part in notes
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(restore(bundle).state_dict()["head.weight"], saved["model.5.weight"].float())


def test_what_order_alone_tells_apart_is_told_until_the_old_model_proves_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layers = "nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)"
    (tmp_path / "square_code.py").write_text(f"from torch import nn\ndef old():\n    return nn.Sequential({layers})\n")
    monkeypatch.syspath_prepend(tmp_path)

    class New(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(images_NCHW.flatten(1)).relu())

    register("square", New, Preprocessing(size_px=(1, 1)))
    import square_code  # pyright: ignore[reportMissingImports]

    torch.save(square_code.old().state_dict(), tmp_path / "square.pt")
    unproved = adopt("square", store=store, checkpoint=tmp_path / "square.pt")
    assert "4 tensors have equals in shape" in store.reports(unproved.digest)["adopt"].details["notes"][0]
    assert "told apart by their order alone" in caplog.text
    proved = adopt("square", store=store, checkpoint=tmp_path / "square.pt", legacy="square_code:old")
    assert proved == unproved
    assert store.reports(proved.digest)["adopt"].details["notes"] == []
    assert store.reports(proved.digest)["adopt"].details["legacy"]["bit_exact"]


def test_the_same_input_gives_the_same_digest_and_no_place_in_it(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    first = adopt("mine", store=store, checkpoint=str(checkpoint))
    elsewhere = tmp_path / "moved" / checkpoint.name
    elsewhere.parent.mkdir()
    checkpoint.rename(elsewhere)
    second = adopt("mine", store=Store(tmp_path / "other"), checkpoint=str(elsewhere))
    assert first.digest == second.digest
    assert str(tmp_path) not in (first.path / "manifest.json").read_text()


@pytest.mark.parametrize("call", ["legacy_code:make(5, eps=1e-05)", "legacy_code:named('5')", 'legacy_code:named("5")'])
def test_a_call_of_old_code_is_typed_as_python_writes_it(
    call: str, store: Store, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["adopt", "architecture=mine", f"checkpoint={checkpoint}", f"legacy={call}", f"store={store.root}"])
    assert done.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "9 tensors by order and shape" in shown
    assert f"on 10 images (Python code: {call})" in shown


def test_another_computation_is_refused_and_nothing_is_stored(store: Store, checkpoint: Path) -> None:
    with pytest.raises(CheckFailed, match=r"legacy_code:make.*not rounding"):
        adopt("mine", store=store, checkpoint=checkpoint, legacy="legacy_code:make(5, eps=0.1)", alias="production")
    assert store.digests() == []
    assert store.aliases.names() == []


def test_a_checkpoint_that_does_not_fit_is_refused(store: Store, checkpoint: Path) -> None:
    with pytest.raises(InputRefused, match=r"old\.ckpt.*missing") as refusal:
        adopt("torchvision/squeezenet1_1", store=store, checkpoint=checkpoint)
    assert refusal.value.exit_code == 3
    assert "unexpected" in str(refusal.value)
    with pytest.raises(InputRefused, match="5 classes and 2 labels"):
        adopt("mine", store=store, checkpoint=checkpoint, labels=["a", "b"])
    with pytest.raises(InputRefused, match="reshaped"):
        adopt("mine", store=store, checkpoint=checkpoint, kwargs={"num_classes": 4})
    assert store.digests() == []


def test_labels_name_the_logits(store: Store, checkpoint: Path) -> None:
    labels = ["no", "yes", "08", "1e-4", "off"]
    assert adopt("mine", store=store, checkpoint=checkpoint, labels=labels).manifest.labels == tuple(labels)
    with pytest.raises(UsageError, match="repeat: a"):
        adopt("mine", store=store, labels=["a", "b", "a"])


def test_random_weights_are_drawn_from_the_seed_alone(store: Store) -> None:
    torch.manual_seed(1)
    first = adopt("mine", store=store, labels=["a", "b"], seed=3)
    state = torch.random.get_rng_state()
    assert adopt("mine", store=store, labels=["a", "b"], seed=3) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert adopt("mine", store=store, labels=["a", "b"], seed=4).digest != first.digest
    assert "seed: 3" in first.manifest.lineage.recipe
    assert first.manifest.architecture.kwargs == {"num_classes": 2}
    assert store.reports(first.digest)["adopt"].verdict == "pass"


def test_preprocessing_overrides_the_architectures_own(store: Store) -> None:
    prepared = adopt(
        "mine", store=store, preprocessing={"size_px": [20, 24], "resize": None, "mean": [0.0, 0.0, 0.0]}
    ).manifest.preprocessing
    assert (prepared.size_px, prepared.resize, prepared.mean) == ((20, 24), "squash", (0.0, 0.0, 0.0))
    whole = Preprocessing(size_px=(16, 16), interpolation="lanczos")
    assert adopt("mine", store=store, preprocessing=whole).manifest.preprocessing == whole
    with pytest.raises(UsageError, match="size_px"):
        adopt("mine", store=store, preprocessing={"size": [20, 24]})


def test_images_the_model_does_not_take_are_refused_before_anything_is_stored(store: Store) -> None:
    with pytest.raises(UsageError, match=r"vit_b_32 does not take images of \[64, 64\] px"):
        adopt("torchvision/vit_b_32", store=store, preprocessing={"size_px": [64, 64]})
    grey = {"colour": "L", "mean": [0.5], "std": [0.5]}
    with pytest.raises(UsageError, match="with 1 channels"):
        adopt("mine", store=store, preprocessing=grey)
    assert store.digests() == []


def test_legacy_needs_a_checkpoint(store: Store) -> None:
    with pytest.raises(UsageError, match="checkpoint"):
        adopt("mine", store=store, legacy="legacy_code:make")


def test_a_published_inception_file_loses_its_auxiliary_head_and_keeps_its_input_convention(
    store: Store, tmp_path: Path
) -> None:
    from torchvision.models import inception_v3

    net = inception_v3(init_weights=False, transform_input=True, num_classes=10)
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    torch.save(net.state_dict(), path)
    bundle = adopt("torchvision/inception_v3", store=store, checkpoint=path)
    assert bundle.manifest.architecture.kwargs == {"num_classes": 10, "transform_input": True}
    report = store.reports(bundle.digest)["adopt"]
    assert report.value("tensors left out") == sum(name.startswith("AuxLogits.") for name in net.state_dict())
    images_NCHW = torch.rand(1, 3, 75, 75)
    assert torch.equal(restore(bundle)(images_NCHW), net.eval()(images_NCHW))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"])
def test_torchvision_models_come_back_from_their_own_checkpoints(name: str, store: Store, tmp_path: Path) -> None:
    key = f"torchvision/{name}"
    net = build(Architecture(key, {"num_classes": 4})).eval()
    torch.save({"model": net.state_dict()}, tmp_path / "net.pt")
    bundle = adopt(key, store=store, checkpoint=tmp_path / "net.pt", preprocessing={"size_px": [64, 64]})
    images_NCHW = torch.rand(2, 3, 64, 64)
    assert torch.equal(restore(bundle)(images_NCHW), net(images_NCHW))
