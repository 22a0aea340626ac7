"""The stage `ensemble`, from the command line to one exported graph, and an ensemble as a teacher."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.backends import open_runner
from toolkit.bundle import Architecture, Bundle, Manifest, Plan, Preprocessing, Store, lineage
from toolkit.cli import main
from toolkit.data import ImageSet
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed, build, pixel_contract, register, restore, teacher_for
from toolkit.pruning import Target
from toolkit.pruning.surgery import apply_plan
from toolkit.stages.ensemble import ensemble
from toolkit.stages.export import export
from toolkit.stages.finetune import finetune
from toolkit.stages.prune import prune
from toolkit.training import Distillation, FitOptions, Phase, Schedule, TrainerSpec

LABELS = ("circle", "square", "triangle")
LARGE = Preprocessing(size_px=(32, 32))
SMALL = Preprocessing(size_px=(24, 24), mean=(0.5,) * 3, std=(0.25,) * 3)
KEPT = (0, 2, 5)
PLAN = Plan({"0.weight": {"0": KEPT}, "0.bias": {"0": KEPT}, "2.weight": {"1": KEPT}}, {"0": {"out_channels": 3}})


def tiny(num_classes: int = 3) -> nn.Module:
    """Two strided convolutions and a linear head."""
    convolutions = (nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register("ensemble-stage-test/tiny", tiny, LARGE)


def stored(
    store: Store, seed: int, preprocessing: Preprocessing = LARGE, labels: tuple[str, ...] = LABELS, plan: Plan | None = None
) -> Bundle:
    architecture = Architecture("ensemble-stage-test/tiny", {"num_classes": len(labels)})
    torch.manual_seed(seed)
    net = build(architecture)
    if plan:
        apply_plan(net, plan)
    contract = pixel_contract(preprocessing, len(labels))
    manifest = Manifest(architecture, labels, preprocessing, contract, lineage("adopt"), plan=plan or Plan())
    return store.add(manifest, weights=net.state_dict())


def answers(bundle: Bundle, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return Deployed(restore(bundle), bundle.manifest.preprocessing)(images)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=60, size_px=32, num_labels=3)


def test_members_of_other_size_plan_and_label_order_export_to_one_graph(store: Store, data: ImageSet) -> None:
    first = stored(store, 0)
    pruned = stored(store, 1, plan=PLAN)
    small = stored(store, 2, SMALL, LABELS[::-1])
    made = ensemble([first, pruned, small], store=store, weights=[2, 1, 1], average="probabilities")
    assert made.manifest.lineage.parents == (first.digest, pruned.digest, small.digest)
    assert made.manifest.labels == LABELS
    report = store.reports(made.digest)["ensemble"]
    assert report.verdict == "pass"
    assert [m["weight"] for m in report.details["members"]] == [0.5, 0.25, 0.25]
    assert [m["resized"] for m in report.details["members"]] == [False, False, True]
    assert [m["labels_reordered"] for m in report.details["members"]] == [False, False, True]
    assert ensemble([first, pruned, small], store=store, weights=[4, 2, 2], average="probabilities") == made
    exported = export(made, store=store, data=data, num_golden=2)
    parity = store.reports(exported.digest)["parity"]
    assert parity.verdict == "pass"
    assert sum("[member=" in m.name and m.passed is True for m in parity.measurements) == 3
    images = torch.randint(0, 256, (3, 3, 32, 32)).float()
    graph = open_runner(exported, kind="onnx")(images.numpy())
    assert np.allclose(graph, answers(store.open(made.digest), images).numpy(), atol=1e-4)


def test_logits_are_averaged_by_weight_and_an_ensemble_can_be_a_member(store: Store) -> None:
    one, two, three = (stored(store, seed) for seed in range(3))
    images = torch.randint(0, 256, (2, 3, 32, 32)).float()
    pair = ensemble([one, two], store=store)
    nested = ensemble([pair, three], store=store, weights=[2, 1])
    expected = (answers(one, images) + answers(two, images) + answers(three, images)) / 3
    assert torch.allclose(answers(nested, images), expected, atol=1e-5)


def test_what_cannot_be_averaged_is_refused_by_name(store: Store) -> None:
    first, other = stored(store, 0), stored(store, 1, labels=("circle", "square", "star"))
    with pytest.raises(UsageError, match=r"only .* has triangle; only .* has star"):
        ensemble([first, other], store=store)
    with pytest.raises(UsageError, match="more than once"):
        ensemble([first, first], store=store)
    with pytest.raises(UsageError, match="at least 2"):
        ensemble([first], store=store)
    second = stored(store, 2)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UsageError, match="weight"):
            ensemble([first, second], store=store, weights=weights)
    with pytest.raises(UsageError, match="average"):
        ensemble([first, second], store=store, average="votes")  # pyright: ignore[reportArgumentType]


def test_the_command_line_opens_each_bundle(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = stored(store, 0), stored(store, 1)
    common = [f"store={store.root}", "average=logits"]
    with pytest.raises(SystemExit) as done:
        main(["ensemble", f"bundles=[{one.digest},{two.digest}]", "weights=[3,1]", *common])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as refused:
        main(["ensemble", f"bundles={one.digest}", *common])
    assert refused.value.code == 2
    made = [bundle for bundle in store.bundles() if bundle.manifest.lineage.stage == "ensemble"]
    assert [bundle.manifest.lineage.parents for bundle in made] == [(one.digest, two.digest)]


def test_an_ensemble_teaches_a_smaller_student_with_other_pixels(store: Store, data: ImageSet, tmp_path: Path) -> None:
    teacher = ensemble([stored(store, 0, labels=LABELS[::-1]), stored(store, 1)], store=store)
    student = stored(store, 3, SMALL)
    settings = {
        "store": store,
        "data": data,
        "schedule": Schedule("short", (Phase(-1, 6, 1e-2),)),
        "trainer": TrainerSpec(accelerator="cpu"),
        "options": FitOptions(batch_size=12, distillation=Distillation(weight=1.0)),
    }
    taught = finetune(student, teacher=teacher, run_dir=tmp_path / "taught", **settings)
    alone = finetune(student, run_dir=tmp_path / "alone", **settings)
    assert taught.manifest.lineage.parents == (student.digest, teacher.digest)
    assert alone.manifest.lineage.parents == (student.digest,)
    facts = store.reports(taught.digest)["training"].details["teacher"]
    assert (facts["digest"], facts["resized"]) == (teacher.digest, True)
    assert "teacher" not in store.reports(alone.digest)["training"].details
    assert not torch.equal(taught.weights()["6.weight"], alone.weights()["6.weight"])
    other = ensemble([stored(store, 8), stored(store, 9)], store=store)
    with pytest.raises(InputRefused, match="teacher"):
        finetune(student, teacher=other, run_dir=tmp_path / "other", resume=tmp_path / "taught", **settings)


def test_a_teacher_answers_in_the_students_labels_or_is_refused(store: Store, data: ImageSet, tmp_path: Path) -> None:
    teacher = stored(store, 0, labels=("star", "triangle", "square", "circle"))
    images = torch.randint(0, 256, (2, 3, 32, 32)).float()
    heard = teacher_for(teacher, preprocessing=LARGE, labels=LABELS)(images)
    assert torch.equal(heard, answers(teacher, images)[:, [3, 2, 1]])
    with pytest.raises(UsageError, match="hexagon"):
        teacher_for(teacher, preprocessing=LARGE, labels=("circle", "hexagon"))
    grey = replace(LARGE, colour="L", mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match="colour"):
        teacher_for(teacher, preprocessing=grey, labels=LABELS)


def test_an_ensemble_itself_is_neither_trained_nor_pruned(store: Store, data: ImageSet, tmp_path: Path) -> None:
    pair = ensemble([stored(store, 0), stored(store, 1)], store=store)
    with pytest.raises(UsageError, match=rf"not pruned as a whole.*{pair.manifest.lineage.parents[1][:12]}"):
        prune(pair, store=store, data=data, run_dir=tmp_path, target=Target(macs=0.5))
    schedule, cpu = Schedule("short", (Phase(0, 1, 1e-3),)), TrainerSpec(accelerator="cpu")
    with pytest.raises(UsageError, match="distil"):
        finetune(pair, store=store, data=data, schedule=schedule, options=FitOptions(), trainer=cpu, run_dir=tmp_path)
