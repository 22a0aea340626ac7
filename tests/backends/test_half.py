"""A float16 graph answers what its float32 graph answers, with every node kept that float16 cannot hold."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from toolkit.backends import OnnxRunner
from toolkit.backends.half import HalfRange, half_values, risky_nodes, write_half
from toolkit.backends.half_pass import HalfPass, half_inputs, lift_constants
from toolkit.backends.ranges import measure_ranges
from toolkit.errors import InputRefused, UsageError

IMAGES_NCHW = np.random.default_rng(0).uniform(0, 255, (20, 3, 8, 8)).astype(np.float32)


def graph(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from `images` (N, 3, 8, 8) to `logits` (N, 3)."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    made = helper.make_graph(nodes, "model", [images], [logits], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"node_{output}", **attributes)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def loud() -> onnx.ModelProto:
    """Two neighbours pass on values of some hundred thousands; the rest is moderate."""
    return graph(
        node("Mul", "images small", "scaled"),
        node("Mul", "scaled large", "loud"),
        node("Relu", "loud", "louder"),
        node("Mul", "louder soft", "quiet"),
        node("ReduceMean", "quiet axes", "logits", keepdims=0),
        small=scalar(1 / 255),
        soft=scalar(1e-4),
        large=scalar(3e5),
        axes=np.array([2, 3]),
    )


def saved(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx", folder / "model.fp16.onnx"


def test_nodes_that_float16_cannot_hold_stay_and_are_named(tmp_path: Path) -> None:
    source, path = saved(loud(), tmp_path)
    facts = write_half(source, path, IMAGES_NCHW)
    assert [entry["node"] for entry in facts.kept] == ["node_loud", "node_louder", "node_quiet"]
    assert "'loud' reaches 3e+05" in facts.kept[1]["reason"]
    assert half_values(path) == {"images", "scaled", "quiet", "logits"}
    expected_NK = OnnxRunner(source)(IMAGES_NCHW)
    for level in ("off", "basic", "all"):
        np.testing.assert_allclose(OnnxRunner(path, optimisation=level)(IMAGES_NCHW), expected_NK, rtol=3e-3)
    exact_NK = ReferenceEvaluator(onnx.load(path)).run(None, {"images": IMAGES_NCHW})[0]
    np.testing.assert_allclose(exact_NK, expected_NK, rtol=3e-3)


def test_without_the_guard_the_same_graph_is_infinite() -> None:
    model = loud()
    with np.errstate(over="ignore"):
        HalfPass(model, set(), opset=20).run()
        assert not np.isfinite(ReferenceEvaluator(model).run(None, {"images": IMAGES_NCHW})[0]).any()


def test_tiny_constants_and_large_sums_stay(tmp_path: Path) -> None:
    model = graph(
        node("Mul", "images tiny", "faint"),
        node("Mul", "faint huge", "back"),
        node("Mul", "images sixty", "wide"),
        node("ReduceMean", "wide axes", "mean", keepdims=0),
        node("ReduceMean", "back axes", "other", keepdims=0),
        node("Add", "mean other", "logits"),
        tiny=scalar(1e-8),
        huge=scalar(1e4),
        sixty=scalar(60.0),
        axes=np.array([2, 3]),
    )
    source, path = saved(model, tmp_path)
    reasons = {entry["node"]: entry["reason"] for entry in write_half(source, path, IMAGES_NCHW).kept}
    assert set(reasons) == {"node_faint", "node_back", "node_mean"}
    assert reasons["node_mean"].startswith("it adds up to")
    assert "is at most 1e-08" in reasons["node_faint"]


def test_ranges_are_those_of_the_values() -> None:
    ranges = measure_ranges(loud(), IMAGES_NCHW)
    assert ranges.values["images"] == IMAGES_NCHW.max()
    assert ranges.values["loud"] == pytest.approx(IMAGES_NCHW.max() * 3e5 / 255, rel=1e-5)
    quiet_NCHW = IMAGES_NCHW.astype(np.float64) * 3e5 / 255 * 1e-4
    assert ranges.inside["logits"] == pytest.approx(quiet_NCHW.sum((2, 3)).max(), rel=1e-4)


def test_headroom_decides_how_near_the_limit_a_value_may_come() -> None:
    model = graph(node("Mul", "images hundred", "wide"), node("ReduceMax", "wide axes", "logits", keepdims=0),
                  hundred=scalar(150.0), axes=np.array([2, 3]))  # fmt: skip
    ranges = measure_ranges(model, IMAGES_NCHW)
    assert 0 in risky_nodes(model, ranges, HalfRange(headroom=2.0))
    assert 0 not in risky_nodes(model, ranges, HalfRange(headroom=1.0))


def test_subgraphs_counters_and_inputs_that_must_be_float32(tmp_path: Path) -> None:
    """An If reads a value from outside, Resize takes its scales in float32, Shape becomes a float that is a count."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["halved", "one"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )
        for op in ("Add", "Sub")
    ]
    model = graph(
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Mul", "images half", "halved"),
        node("Size", "images", "count"),
        node("Cast", "count", "number", to=TensorProto.FLOAT),
        node("Greater", "number zero", "some"),
        node("If", "some", "chosen", then_branch=branch[0], else_branch=branch[1]),
        node("Resize", "chosen  scales", "larger", mode="nearest"),
        node("ReduceMean", "larger axes", "logits", keepdims=0),
        one=scalar(1.0),
        zero=scalar(0.0),
        scales=np.array([1, 1, 2, 2], np.float32),
        axes=np.array([2, 3]),
    )
    model.graph.node[6].input[:] = ["chosen", "", "scales"]
    source, path = saved(model, tmp_path)
    facts = write_half(source, path, IMAGES_NCHW)
    reasons = {entry["node"]: entry["reason"] for entry in facts.kept}
    assert reasons["node_halved"] == "a subgraph reads its output"
    assert reasons["node_number"].startswith("it counts")
    assert "node_larger" not in reasons
    np.testing.assert_allclose(OnnxRunner(path)(IMAGES_NCHW), OnnxRunner(source)(IMAGES_NCHW), rtol=2e-3)


def test_operators_are_asked_for_their_float16_form() -> None:
    assert half_inputs(node("Conv", "a b c", "d"), 20) == [True, True, True]
    resize = helper.make_node("Resize", ["a", "", "scales"], ["b"])
    assert half_inputs(resize, 20) == [True, True, False]
    assert half_inputs(node("NonMaxSuppression", "a b", "c"), 20) == [False, False]
    assert half_inputs(helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft"), 20) is None


def test_constants_become_initializers() -> None:
    model = graph(
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2, 3]))),
        node("ReduceMean", "images axes", "logits", keepdims=0),
    )
    lift_constants(model)
    assert [n.op_type for n in model.graph.node] == ["ReduceMean"]
    assert [t.name for t in model.graph.initializer] == ["axes"]


def test_a_graph_without_a_node_for_float16_is_refused(tmp_path: Path) -> None:
    model = graph(node("Mul", "images large", "a"), node("ReduceMean", "a axes", "logits", keepdims=0),
                  large=scalar(1e6), axes=np.array([2, 3]))  # fmt: skip
    source, path = saved(model, tmp_path)
    with pytest.raises(InputRefused, match="no node can compute in float16"):
        write_half(source, path, IMAGES_NCHW)
    with pytest.raises(UsageError, match=r"headroom is 0\.5"):
        HalfRange(headroom=0.5)
    with pytest.raises(UsageError, match="num_images is 0"):
        HalfRange(num_images=0)
