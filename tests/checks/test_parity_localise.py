"""A failing parity names its place: for each planted fault the module it was planted in, for a clean graph none."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from tests.backends.small import PREPROCESSING, altered, images_NCHW, small, written
from toolkit.checks.parity import parity
from toolkit.checks.parity_localise import Place, localise
from toolkit.checks.parity_search import search
from toolkit.models import Deployed


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clean"))[0]


@pytest.fixture
def graph(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clean, tmp_path / "model.onnx"))


def test_a_clean_graph_has_no_culprit_and_every_module_compared(clean: Path) -> None:
    found = localise(small(), clean, images_NCHW())
    assert found.culprit is None
    assert {"normalise", "net.bn1", "net.bn2", "net.head"} <= {place.module for place in found.places}
    assert max(place.ratio for place in found.places) < 8


@pytest.mark.parametrize(
    ("tensor", "culprit"),
    [
        ("net.conv1.weight", "net.conv1 + net.bn1"),
        ("net.conv2.weight", "net.act + net.conv2 + net.bn2"),
        ("net.head.weight", "net.act + net.head"),
    ],
)
def test_a_scaled_weight_is_found_where_it_is(graph: Path, tensor: str, culprit: str) -> None:
    altered(graph, tensor, 1.01)
    found = localise(small(), graph, images_NCHW())
    assert found.culprit is not None
    assert found.culprit.name == culprit
    assert all(place.ratio < 8 for place in found.places[: found.places.index(found.culprit)])
    assert culprit in found.sentence()


@pytest.mark.parametrize("tensor", ["net.conv1.weight", "net.conv2.weight", "net.head.weight"])
def test_with_memory_for_one_value_at_a_time_the_same_module_is_found(graph: Path, tensor: str) -> None:
    altered(graph, tensor, 1.01)
    everything, frugal = (localise(small(), graph, images_NCHW(), max_bytes=size) for size in (2**30, 1))
    assert frugal.culprit == everything.culprit is not None


def test_a_search_follows_the_edges_of_the_graph_and_compares_few_values() -> None:
    order = [f"trunk{i}" for i in range(40)] + [f"branch{i}" for i in range(20)]  # the branch leaves the trunk at the start
    upstream = {f"trunk{i}": frozenset(f"trunk{j}" for j in range(i)) for i in range(40)}
    upstream |= {f"branch{i}": frozenset({"trunk0", *(f"branch{j}" for j in range(i))}) for i in range(20)}
    for culprit in ("trunk0", "trunk17", "trunk39", "branch0", "branch19", ""):
        rounds: list[int] = []

        def compare(modules: Sequence[str], culprit: str = culprit, rounds: list[int] = rounds) -> list[Place]:
            rounds.append(len(modules))
            wrong = {m: 100.0 if m == culprit or culprit in upstream[m] else 1.0 for m in modules}
            return [Place(m, (), "Conv", m, "", ratio) for m, ratio in wrong.items()]

        found = search(order, upstream, dict.fromkeys(order, 10), compare, max_bytes=35, k=8)
        assert next((place.module for place in found if place.ratio > 8), "") == culprit
        assert max(rounds) <= 3
        assert sum(rounds) <= 20


def other_epsilon(deployed: Deployed) -> Deployed:
    deployed.net.bn2.eps = 1e-3
    return deployed


def other_mean(deployed: Deployed) -> Deployed:
    return Deployed(deployed.net, replace(PREPROCESSING, mean=(0.5, 0.5, 0.5)))


def other_activation(deployed: Deployed) -> Deployed:
    deployed.net.act = nn.Hardswish()
    return deployed


@pytest.mark.parametrize(
    ("change", "culprit"), [(other_epsilon, "net.bn2"), (other_mean, "normalise"), (other_activation, "net.act")]
)
def test_what_changed_in_the_model_is_found(graph: Path, change: Callable[[Deployed], Deployed], culprit: str) -> None:
    found = localise(change(small()), graph, images_NCHW())
    assert found.culprit is not None
    assert culprit in found.culprit.name.split(" + ")  # `act` is called twice: it is named with the next single value


def test_a_value_that_is_no_number_is_found_and_the_report_holds_it(graph: Path) -> None:
    altered(graph, "net.conv2.bias", float("nan"))
    report = parity(small(), graph, images_NCHW(), subject="ab" * 32)
    assert report.verdict == "fail"
    assert report.details["fault"]["culprit"]["module"] == "net.bn2"
    assert report.details["fault"]["culprit"]["ratio"] is None
    assert b"net.conv2" in report.to_json()
