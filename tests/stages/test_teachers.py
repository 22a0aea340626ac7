"""What is no module teaches a student too: an ONNX graph, a TorchScript program, each through its own preprocessing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checks.planted import images, stored, tiny, trained
from tests.migration.graph_forms import FORMS, write_form
from tests.models.programs import write_program
from toolkit.backends import as_module, open_runner
from toolkit.bundle import Bundle, Preprocessing, Store
from toolkit.data import ImageSet, load_pixels
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused, UsageError
from toolkit.models import restore, teacher_for
from toolkit.stages.adopt import adopt
from toolkit.stages.finetune import finetune
from toolkit.training import Distillation, FitOptions, Phase, Schedule, TrainerSpec

STUDENT_PX = 24


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=200, size_px=32, num_labels=3)


def teacher_of(kind: str, store: Store, tmp_path: Path) -> Bundle:
    labels = images().labels[::-1]
    if kind == "torchscript":
        path = write_program(trained(num_epochs=3), tmp_path / "old.ts", how="traced")
        prepared: dict[str, Any] = {"size_px": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
        kwargs = {"input": "normalised"}
        return adopt("torchscript", store=store, checkpoint=path, labels=labels, kwargs=kwargs, preprocessing=prepared)
    return adopt(
        "onnx", store=store, checkpoint=write_form(kind, tmp_path / "old.onnx", num_epochs=3), labels=labels, **FORMS[kind]
    )


@pytest.mark.parametrize("kind", ["normalised", "uint8_nhwc", "probabilities", "torchscript"])
def test_a_teacher_is_heard_as_it_serves(kind: str, store: Store, tmp_path: Path) -> None:
    teacher = teacher_of(kind, store, tmp_path)
    images_NCHW = torch.randint(0, 256, (3, 3, 32, 32)).float()
    same = Preprocessing((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    with torch.inference_mode():
        heard_NK = teacher_for(teacher, preprocessing=same, labels=images().labels, deployed=as_module(teacher))(images_NCHW)
    np.testing.assert_allclose(heard_NK.numpy(), open_runner(teacher)(images_NCHW.numpy())[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("kind", ["uint8_nhwc", "torchscript"])
def test_a_student_learns_from_it(kind: str, store: Store, data: ImageSet, tmp_path: Path) -> None:
    teacher = teacher_of(kind, store, tmp_path)
    torch.manual_seed(0)
    student = stored(store, tiny(), size_px=STUDENT_PX)
    settings: dict[str, Any] = {
        "store": store,
        "data": data,
        "schedule": Schedule("short", (Phase(-1, 8, 1e-2),)),
        "trainer": TrainerSpec(accelerator="cpu"),
        "options": FitOptions(batch_size=32, distillation=Distillation(weight=1.0)),
    }
    taught = finetune(student, teacher=teacher, run_dir=tmp_path / "taught", **settings)
    alone = finetune(student, run_dir=tmp_path / "alone", **settings)
    assert taught.manifest.lineage.parents == (student.digest, teacher.digest)
    assert store.reports(taught.digest)["training"].details["teacher"]["resized"]
    assert divergence(taught, teacher, data) < 0.8 * divergence(alone, teacher, data)
    other = stored(store, trained(num_epochs=1))
    with pytest.raises(InputRefused, match="teacher"):
        finetune(student, teacher=other, run_dir=tmp_path / "other", resume=tmp_path / "taught", **settings)


def divergence(student: Bundle, teacher: Bundle, data: ImageSet) -> float:
    """Mean KL between the teacher's and the student's answers on the training images, each at its own size."""
    train = data.split("train")
    answers = []
    for bundle in (teacher, student):
        pixels = load_pixels(train, bundle.manifest.preprocessing).images_NCHW.float()
        order = [bundle.manifest.labels.index(label) for label in data.labels]
        with torch.no_grad():
            answers.append(as_module(bundle)(pixels)[:, order].log_softmax(1))
    return float(torch.nn.functional.kl_div(answers[1], answers[0], reduction="batchmean", log_target=True))


def test_a_graph_knows_its_labels_and_is_no_student(store: Store, data: ImageSet, tmp_path: Path) -> None:
    teacher = teacher_of("pixels", store, tmp_path)
    same = Preprocessing((32, 32))
    with pytest.raises(UsageError, match="hexagon"):
        teacher_for(teacher, preprocessing=same, labels=("circle", "hexagon"), deployed=as_module(teacher))
    with pytest.raises(InputRefused, match=r"ONNX graph.*teacher"):
        restore(teacher)
