"""Runners beside onnxruntime and eager torch: the same logits, or a clear word about what the machine or the bundle lacks."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch._inductor import freezing

from tests.backends.small import bundled, images_NCHW, small, written
from toolkit.backends import EagerRunner, autocast_dtype, open_runner, open_session, run_openvino
from toolkit.backends.devices import PROVIDERS
from toolkit.backends.number_formats import processor_flags
from toolkit.backends.run_compile import CompiledRunner
from toolkit.backends.run_openvino import OpenvinoRunner
from toolkit.bundle import GRAPHS, ONNX, Bundle, Store
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) for torch.compile")
needs_openvino = pytest.mark.skipif(run_openvino.openvino is None, reason="the extra openvino is not installed")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("graph"))[0]


@pytest.fixture(scope="module")
def exported(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = Store(tmp_path_factory.mktemp("exported") / "store")
    plain = bundled(store)
    return store.add(plain.manifest, weights=plain.weights(), files={ONNX: graph})


@needs_compiler
def test_the_compiled_module_gives_the_same_logits_and_leaves_the_module_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    frozen, freeze = [], freezing.freeze
    monkeypatch.setattr(freezing, "freeze", lambda *a, **k: frozen.append(1) or freeze(*a, **k))
    deployed = small()
    runner = CompiledRunner(deployed, threads=1)
    np.testing.assert_allclose(
        runner(images_NCHW()[:4]), EagerRunner(deployed, dtype="float64")(images_NCHW()[:4]), rtol=1e-4, atol=1e-5
    )
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
    assert not hasattr(deployed, "_orig_mod")
    assert frozen, "the weights were not frozen"


def test_without_a_compiler_the_error_names_it(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentProblem, match=r"'no-such-compiler' is not on the PATH.*apt-get install g\+\+.*set CXX"):
        open_runner(exported, kind="compile")


def test_a_compiler_that_fails_is_told_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(broken),))  # read from CXX when torch was imported
    with pytest.raises(EnvironmentProblem, match=r"could not compile the model .*python3-dev"):
        CompiledRunner(small(), threads=1)(images_NCHW()[:3])


@needs_openvino
def test_openvino_computes_in_float32_on_the_threads_it_is_given(graph: Path, exported: Bundle) -> None:
    runner = OpenvinoRunner(graph, threads=1)
    reference_NK = EagerRunner(small(), dtype="float64")(images_NCHW())
    np.testing.assert_allclose(runner(images_NCHW()), reference_NK, rtol=1e-4, atol=1e-5)  # its default here may be bfloat16
    first_NK = runner(images_NCHW()[:1])
    kept_NK = first_NK.copy()
    runner(images_NCHW()[1:2])
    np.testing.assert_array_equal(first_NK, kept_NK)  # an answer does not change with the next call
    assert runner.settings["inference_num_threads"] == "1"
    assert runner.settings["inference_precision_hint"] == "f32"
    assert open_runner(exported, kind="openvino", threads=1).name == "openvino"


@needs_openvino
def test_openvino_refuses_what_it_would_answer_with_nonsense(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes images of shape \[None, 3, 24, 24\]; got \[1, 3, 20, 24\]"):
        OpenvinoRunner(graph)(np.zeros((1, 3, 20, 24), np.float32))
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(graph.read_bytes()[:200])
    with pytest.raises(InputRefused, match=r"model\.onnx"):
        OpenvinoRunner(damaged)


def test_a_missing_extra_and_a_foreign_device_are_told(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_openvino, "openvino", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'model-upgrade-toolkit\[openvino\]'"):
        open_runner(exported, kind="openvino")
    with pytest.raises(UsageError, match="torch runs on cpu or cuda, not on tensorrt: use onnxruntime-tensorrt"):
        open_runner(exported, kind="eager", device="tensorrt")


def test_a_provider_that_onnxruntime_silently_replaced_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def on_the_cpu(*_: Any, providers: list[Any], **__: Any) -> SimpleNamespace:
        started.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    with pytest.raises(EnvironmentProblem, match="could not start CUDAExecutionProvider and fell back to CPUExecutionProvider"):
        open_session(graph, providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"])
    assert started == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_provider_this_onnxruntime_lacks_names_the_package(exported: Bundle) -> None:
    with pytest.raises(EnvironmentProblem, match=r"has no CUDAExecutionProvider .*pip install onnxruntime-gpu"):
        open_session(exported.file(ONNX), providers=["CUDAExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match="has no TensorrtExecutionProvider"):
        open_runner(exported, kind="onnx", device="tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("kind", ["eager", "compile"])
def test_torch_without_a_card_is_refused(exported: Bundle, kind: str) -> None:
    with pytest.raises(EnvironmentProblem, match="no CUDA device is usable here"):
        open_runner(exported, kind=kind, device="cuda")


def test_a_precision_the_bundle_lacks_says_how_to_export_it(exported: Bundle) -> None:
    with pytest.raises(InputRefused, match=rf"has no {GRAPHS['int8']}.*toolkit export .*'precisions=\[fp32,int8\]'"):
        open_runner(exported, kind="onnx", precision="int8")
    with pytest.raises(UsageError, match="a graph is exported in fp32, fp16, int8, not in bf16"):
        open_runner(exported, kind="onnx", precision="bf16")


def test_short_formats_run_only_where_the_processor_has_them(tmp_path: Path) -> None:
    assert autocast_dtype("fp32", flags=set()) is None
    assert autocast_dtype("bf16", flags={"avx512_bf16"}) == torch.bfloat16
    assert autocast_dtype("fp16", flags={"amx_fp16"}) == torch.float16
    with pytest.raises(EnvironmentProblem, match=r"no bf16 instructions .*8 to 44 times slower"):
        autocast_dtype("bf16", flags={"avx2", "fma"})
    with pytest.raises(UsageError, match="not in int8"):
        autocast_dtype("int8")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "avx512_bf16"}
    assert processor_flags(tmp_path / "absent") == set()


def test_autocast_shortens_the_products_and_answers_in_float32() -> None:
    exact_NK = EagerRunner(small(), dtype="float64")(images_NCHW()[:8])
    short_NK = EagerRunner(small(), autocast=torch.bfloat16)(images_NCHW()[:8])
    assert short_NK.dtype == np.float32
    error = float(np.abs(short_NK - exact_NK).max() / np.abs(exact_NK).max())
    assert 1e-4 < error < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["eager", "compile"])
def test_torch_on_the_card_answers_like_float64_with_tf32_off(exported: Bundle, kind: str) -> None:
    runner = open_runner(exported, kind=kind, device="cuda")
    reference_NK = EagerRunner(small(), dtype="float64")(images_NCHW()[:4])
    np.testing.assert_allclose(runner(images_NCHW()[:4]), reference_NK, rtol=1e-4, atol=1e-5)
    settings = getattr(runner, "settings")  # noqa: B009 (a runner need not have them)
    assert (settings["tf32_matmul"], settings["tf32_cudnn"]) == (False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_onnxruntime_on_the_card_answers_like_float64_with_tf32_off(exported: Bundle, device: Any) -> None:
    if PROVIDERS[device][0][0] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {PROVIDERS[device][0][0]}")
    runner = open_runner(exported, kind="onnx", device=device)
    reference_NK = EagerRunner(small(), dtype="float64")(images_NCHW()[:4])
    np.testing.assert_allclose(runner(images_NCHW()[:4]), reference_NK, rtol=1e-4, atol=1e-5)
    assert not any(getattr(runner, "settings")["tf32"].values())  # noqa: B009
