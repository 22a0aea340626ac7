"""Runners agree with each other, refuse what does not fit, and disturb neither the module nor the process."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backends.small import bundled, images_NCHW, small, written
from toolkit.backends import EagerRunner, OnnxRunner, Runner, open_runner, runner_kinds
from toolkit.bundle import ONNX, Store
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("graph"))[0]


def test_every_runner_gives_the_same_logits(graph: Path) -> None:
    deployed = small()
    reference_NK = EagerRunner(deployed, dtype="float64")(images_NCHW())
    assert reference_NK.dtype == np.float64
    runners = [EagerRunner(deployed), *(OnnxRunner(graph, optimisation=level, threads=1) for level in ("all", "basic", "off"))]
    runners.append(OnnxRunner(graph.read_bytes()))
    for runner in runners:
        assert isinstance(runner, Runner)
        np.testing.assert_allclose(runner(images_NCHW()), reference_NK, rtol=1e-4, atol=1e-5)
    assert next(deployed.parameters()).dtype == torch.float32


def test_an_eager_runner_leaves_the_thread_count_and_a_training_module_as_they_were() -> None:
    deployed = small().train()
    before = torch.get_num_threads()
    first_NK = EagerRunner(deployed, threads=2)(images_NCHW())
    assert torch.get_num_threads() == before
    assert deployed.training
    np.testing.assert_array_equal(EagerRunner(small(), threads=2)(images_NCHW()), first_NK)


@pytest.mark.parametrize("shape", [(2, 3, 24, 25), (2, 1, 24, 24), (3, 24, 24)])
def test_a_batch_that_does_not_fit_is_refused(graph: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"model\.onnx takes"):
        OnnxRunner(graph)(np.zeros(shape, np.float32))


def test_unknown_settings_are_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="choose all, basic or off"):
        OnnxRunner(graph, optimisation="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="Did you mean CPUExecutionProvider"):
        OnnxRunner(graph, providers=["CPUExecutionProvidor"])
    with pytest.raises(UsageError, match="float32 or float64"):
        EagerRunner(small(), dtype="float16")  # pyright: ignore[reportArgumentType]


def test_a_bundle_opens_as_what_it_is_served_with(store: Store, graph: Path) -> None:
    plain = bundled(store)
    exported = store.add(plain.manifest, weights=plain.weights(), files={ONNX: graph})
    assert isinstance(open_runner(plain), EagerRunner)
    assert isinstance(open_runner(exported), OnnxRunner)
    assert isinstance(open_runner(exported, kind="eager"), EagerRunner)
    with pytest.raises(InputRefused, match=r"has no model\.onnx"):
        open_runner(plain, kind="onnx")
    with pytest.raises(UsageError, match="Did you mean onnx"):
        open_runner(plain, kind="onx")


def test_every_kind_of_runner_opens_a_bundle(store: Store, graph: Path) -> None:
    plain = bundled(store)
    exported = store.add(plain.manifest, weights=plain.weights(), files={ONNX: graph})
    assert {"compile", "eager", "onnx", "openvino"} <= set(runner_kinds())
    for kind in runner_kinds():
        try:
            runner = open_runner(exported, kind=kind, threads=1)
        except EnvironmentProblem:  # an extra or a compiler is missing; test_runtimes says so by name
            continue
        assert isinstance(runner, Runner)
        assert kind == "compile" or runner(images_NCHW()[:2]).shape == (2, 3)  # compiling takes long; test_runtimes does it
