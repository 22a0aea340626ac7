"""Each member of an ensemble's graph is held against itself, because an average hides what one of them lost."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.checks.planted import PREPROCESSING, images, tiny, trained
from toolkit.backends import write_onnx
from toolkit.bundle import Architecture, Preprocessing, Report
from toolkit.checks.parity import ParityLimits, parity
from toolkit.checks.parity_members import with_members
from toolkit.data import load_pixels
from toolkit.models import Deployed
from toolkit.models.ensemble import Ensemble, Member, joint_preprocessing

LIMITS = ParityLimits(batches=(1, 3))
IMAGES_NCHW = load_pixels(images().split("test"), PREPROCESSING).images_NCHW[:16].numpy().astype(np.float32)
SMALL = Preprocessing((24, 24), mean=PREPROCESSING.mean, std=PREPROCESSING.std)


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    """Two members, of which the second, smaller one counts for a thousandth, in another order of labels."""
    shares = ((0.999, PREPROCESSING, (0, 1, 2)), (0.001, SMALL, (2, 0, 1)))
    members = [Member(Architecture("tests/tiny"), share, prepared, order) for share, prepared, order in shares]
    nets = [trained(num_epochs=1), trained(num_epochs=1, seed=1)]
    net = Ensemble(nets, members, average="logits", size_px=(32, 32))
    return Deployed(net.eval(), joint_preprocessing([PREPROCESSING, SMALL]))


@pytest.fixture(scope="module")
def graph(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("members") / "model.onnx"
    write_onnx(deployed, path, preprocessing=joint_preprocessing([PREPROCESSING, SMALL]), labels=["a", "b", "c"])
    return path


def judged(deployed: Deployed, path: Path) -> tuple[Report, Report]:
    """The joint report, and the one with members."""
    joint = parity(deployed, path, IMAGES_NCHW, subject="0" * 64, limits=LIMITS)
    return joint, with_members(joint, deployed, path, IMAGES_NCHW, LIMITS)


def test_a_clean_graph_passes_jointly_and_member_by_member(deployed: Deployed, graph: Path) -> None:
    joint, whole = judged(deployed, graph)
    assert joint.verdict == whole.verdict == "pass"
    found = [m for m in whole.measurements if "[member=" in m.name]
    assert [m.name for m in found] == ["error_ratio.max[member=member 0]", "error_ratio.max[member=member 1]"]
    assert all(m.passed and m.value is not None and m.value < 4 for m in found)


def test_a_fault_that_the_average_hides_is_found_in_its_member(deployed: Deployed, graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    head = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("members.1.11.weight"))
    weight = numpy_helper.to_array(head).copy()
    weight[0] *= 1 + 2e-5
    head.CopyFrom(numpy_helper.from_array(weight, head.name))
    onnx.save(model, tmp_path / "model.onnx")
    joint, whole = judged(deployed, tmp_path / "model.onnx")
    assert joint.verdict == "pass", "the average must hide it, or this test shows nothing"
    assert whole.verdict == "fail"
    assert [m.name for m in whole.measurements if m.passed is False] == ["error_ratio.max[member=member 1]"]
    assert "member 1 inside it does not" in whole.details["fault"]["sentence"]


def test_another_net_is_left_as_it_is(graph: Path) -> None:
    report = Report("parity", ("0" * 64,), "pass")
    assert with_members(report, Deployed(tiny(), PREPROCESSING), graph, IMAGES_NCHW, LIMITS) is report
