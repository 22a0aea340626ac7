"""The stage: a pruned bundle that reloads anywhere, bit for bit, with a report of what it bought."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.stages.pruning import OPTIONS, RECOVERY, forgetful
from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.data import ImageSet
from toolkit.data.shapes import shapes
from toolkit.errors import CheckFailed, InputRefused, UsageError
from toolkit.models import build, pixel_contract, register, restore
from toolkit.pruning import CRITERIA, Target, apply_plan, count_macs, count_parameters
from toolkit.stages.prune import Recovery, prune
from toolkit.training import Distillation, FitOptions, full

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=80, size_px=32, num_labels=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prune")


@pytest.fixture(scope="module")
def shared(folder: Path, data: ImageSet) -> tuple[Store, Bundle, Bundle]:
    """A store with a small net and its pruned child."""
    store = Store(folder / "store")
    blocks = [[1, 16, 1, 1], [6, 32, 2, 2], [6, 64, 1, 2]]
    architecture = Architecture("torchvision/mobilenet_v2", {"num_classes": 2, "inverted_residual_setting": blocks})
    preprocessing = Preprocessing(size_px=(32, 32))
    torch.manual_seed(0)
    manifest = Manifest(architecture, tuple(data.labels), preprocessing, pixel_contract(preprocessing, 2), lineage("adopt"))
    parent = store.add(manifest, weights=build(architecture).state_dict())
    child = prune(
        parent,
        store=store,
        data=data,
        run_dir=folder / "run",
        target=Target(macs=0.5),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=RECOVERY,
    )
    return store, parent, child


def test_everything_that_should_drop_drops_and_is_reported(shared: tuple[Store, Bundle, Bundle]) -> None:
    store, parent, child = shared
    report = store.reports(child.digest)["pruning"]
    before, after = restore(parent), restore(child)
    example = torch.zeros(1, 3, 32, 32)
    assert report.subjects == (child.digest, parent.digest)
    assert report.value("macs.candidate") == count_macs(after, example)
    assert 0.4 < report.value("macs.ratio") <= 0.5
    assert report.value("parameters.baseline") == count_parameters(before)
    for quantity in ("parameters", "weights_size", "size"):
        assert report.value(f"{quantity}.candidate") < report.value(f"{quantity}.baseline")
    assert report.value("latency_median.candidate") > 0
    for moment in ("baseline", "after_surgery", "after_batchnorm", "candidate"):
        assert 0 <= report.value(f"balanced_accuracy.{moment}[split=val]") <= 1
    assert report.details["channels"]["features.5.0"][0] == 1280
    assert report.details["channels"]["classifier.1"] == [2, 2]


def test_the_child_keeps_what_a_model_is(shared: tuple[Store, Bundle, Bundle], data: ImageSet) -> None:
    _, parent, child = shared
    made = child.manifest.lineage
    assert (made.stage, made.parents, made.data_fingerprint) == ("prune", (parent.digest,), data.fingerprint())
    assert "macs: 0.5" in made.recipe
    same = ("architecture", "labels", "preprocessing", "contract")
    assert all(getattr(child.manifest, field) == getattr(parent.manifest, field) for field in same)
    assert all(p.requires_grad for p in restore(child).parameters())


def test_the_same_pruning_is_found_again(shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path) -> None:
    store, parent, child = shared
    again = prune(
        parent,
        store=store,
        data=data,
        run_dir=tmp_path / "other",
        target=Target(macs=0.5),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=RECOVERY,
    )
    assert again.digest == child.digest
    assert not (tmp_path / "other").exists()


def test_a_bundle_without_its_report_is_made_again(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path
) -> None:
    store, parent, child = shared
    (store.root / "reports" / child.digest / "pruning.json").unlink()
    again = prune(
        parent,
        store=store,
        data=data,
        run_dir=tmp_path / "again",
        target=Target(macs=0.5),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=RECOVERY,
    )
    assert again.digest == child.digest
    assert store.reports(child.digest)["pruning"].value("macs.ratio") <= 0.5


def test_a_net_that_does_not_come_back_from_its_weights_leaves_no_bundle(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path
) -> None:
    _, parent, _ = shared
    store = Store(tmp_path / "store")
    register("forgetful", forgetful)
    manifest = replace(parent.manifest, architecture=Architecture("forgetful", {"num_classes": 2}))
    bundle = store.add(manifest, weights=forgetful().state_dict())
    with pytest.raises(CheckFailed, match="does not come back"):
        prune(
            bundle,
            store=store,
            data=data,
            run_dir=tmp_path / "run",
            target=Target(ratio=0.5),
            criterion=CRITERIA["magnitude"](),
            options=OPTIONS,
            recovery=RECOVERY,
        )
    assert store.digests() == [bundle.digest]
    assert store.reports(bundle.digest) == {}


def test_findings_about_the_data_are_logged_and_kept(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, parent, _ = shared
    store = Store(tmp_path / "store")
    twin = next(sample for sample in data.samples if sample.split == "train")
    repeated = replace(data, samples=(*data.samples, replace(twin, key="twin")))
    small = replace(RECOVERY, options=FitOptions(batch_size=16))
    child = prune(
        parent,
        store=store,
        data=repeated,
        run_dir=tmp_path / "run",
        target=Target(macs=0.5),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=small,
    )
    kept = store.reports(child.digest)["data"].details
    assert len(kept["repeated"]) == 1
    assert kept["warnings"]
    assert kept["warnings"][0] in caplog.text


def test_a_recovery_that_was_cut_off_is_resumed_to_the_same_bundle(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, folder: Path, tmp_path: Path
) -> None:
    _, parent, child = shared
    elsewhere = Store(tmp_path / "store")
    elsewhere.add(parent.manifest, weights=parent.weights())
    resumed = prune(
        parent,
        store=elsewhere,
        data=data,
        run_dir=tmp_path / "unused",
        target=Target(macs=0.5),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=RECOVERY,
        resume=str(folder / "run"),  # pyright: ignore[reportArgumentType] (as a config gives it)
    )
    assert resumed.digest == child.digest
    assert not (tmp_path / "unused").exists()


RELOAD = """
import sys, torch
from safetensors.torch import load_file
from toolkit.bundle import Store
from toolkit.models import restore
torch.set_num_threads(1)
expected = load_file(sys.argv[3])
found = restore(Store(sys.argv[1]).open(sys.argv[2]))(expected["images"])
assert torch.equal(found, expected["logits"]), (found - expected["logits"]).abs().max()
assert not [name for name in sys.modules if "torch_pruning" in name]
"""


def test_a_fresh_process_gives_the_same_bits_without_a_pruning_library(
    shared: tuple[Store, Bundle, Bundle], tmp_path: Path
) -> None:
    store, _, child = shared
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        save_file({"images": images, "logits": restore(child)(images)}, tmp_path / "expected.safetensors")
    arguments = [str(store.root), child.digest, str(tmp_path / "expected.safetensors")]
    done = subprocess.run([sys.executable, "-c", RELOAD, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pruned_bundle_can_be_pruned_again(shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path) -> None:
    store, _, child = shared
    options = replace(OPTIONS, steps=2, protect=["features.0"])
    grandchild = prune(
        child,
        store=store,
        data=data,
        run_dir=tmp_path,
        target=Target(ratio=0.5),
        criterion=CRITERIA["taylor"](),
        options=options,
        recovery=replace(RECOVERY, options=FitOptions(batch_size=16)),
    )
    assert store.reports(grandchild.digest)["pruning"].value("macs.ratio") < 0.7
    sizes = json.loads(json.dumps(store.reports(grandchild.digest)["pruning"].details["channels"]))
    assert sizes["features.0.0"][0] == sizes["features.0.0"][1]
    net = restore(grandchild)
    assert len(net.get_submodule("features.5.0").weight) == sizes["features.5.0"][1]


def test_pruning_inside_the_recovery_makes_a_bundle_that_reloads(
    shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path
) -> None:
    store, parent, _ = shared
    settings = {
        "store": store,
        "data": data,
        "run_dir": tmp_path / "run",
        "criterion": CRITERIA["taylor"](),
        "options": OPTIONS,
    }
    recovery = replace(RECOVERY, schedule=full(epochs=3, lr=1e-3), prune_at=[0, 2])
    child = prune(parent, target=Target(macs=0.5), recovery=recovery, **settings)
    report = store.reports(child.digest)["pruning"]
    example = torch.zeros(1, 3, 32, 32)
    assert 0.4 < count_macs(restore(child), example) / count_macs(restore(parent), example) <= 0.5
    assert 0 <= report.value("balanced_accuracy.candidate[split=val]") <= 1
    assert "prune_at" in child.manifest.lineage.recipe
    page = (tmp_path / "run" / "pruning.html").read_text()
    assert "recovered" in page
    assert "channels removed" not in page
    for wrong, words in (
        ({"target": Target(latency=0.5)}, "target.macs"),
        ({"options": replace(OPTIONS, steps=2)}, "steps at 1"),
    ):
        with pytest.raises(UsageError, match=words):
            prune(parent, recovery=recovery, **{**settings, **wrong})


def test_other_labels_are_refused_before_any_work(shared: tuple[Store, Bundle, Bundle], tmp_path: Path) -> None:
    store, parent, _ = shared
    other = shapes(num_samples=80, size_px=32, num_labels=3)
    with pytest.raises(InputRefused, match="label"):
        prune(parent, store=store, data=other, run_dir=tmp_path / "run", target=Target(macs=0.5))
    assert not (tmp_path / "run").exists()


def test_a_target_out_of_reach_leaves_no_bundle(shared: tuple[Store, Bundle, Bundle], data: ImageSet, tmp_path: Path) -> None:
    store, parent, _ = shared
    before = store.digests()
    with pytest.raises(UsageError, match="cannot be met"):
        prune(parent, store=store, data=data, run_dir=tmp_path, target=Target(macs=0.01), options=OPTIONS, recovery=RECOVERY)
    assert store.digests() == before


def test_the_default_recovery_learns_from_the_unpruned_model() -> None:
    assert Recovery().options.distillation == Distillation()


def test_recovery_trains_every_parameter_that_is_left(
    shared: tuple[Store, Bundle, Bundle],
) -> None:
    """An optimizer made before surgery would hold parameters that are no longer in the net, and train nothing."""
    _, parent, child = shared
    cut = restore(parent)
    apply_plan(cut, child.manifest.plan)
    trained = dict(restore(child).named_parameters())
    assert [name for name, parameter in cut.named_parameters() if torch.equal(parameter, trained[name])] == []
