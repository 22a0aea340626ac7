"""Layers timed one by one: the graph is the layer, the table is kept, and the grid is what the machine is fast on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.backends import open_session
from toolkit.backends.channel_grid import measured_grid
from toolkit.backends.net_latency import NetClock
from toolkit.backends.op_graphs import WEIGHT, op_graph
from toolkit.backends.op_latency import OpTable, resident_call
from toolkit.bundle import Preprocessing
from toolkit.bundle.machine import cache_directory
from toolkit.pruning.layers import LayerOp, layer_calls

CONV = LayerOp("conv", 16, 32, (9, 7), (3, 5), (2, 1), (1, 2), (1, 1), groups=4)
LINEAR = LayerOp("linear", 24, 10, (6,))


def test_the_graph_computes_the_layer() -> None:
    for op, module, shape in (
        (CONV, nn.Conv2d(16, 32, (3, 5), stride=(2, 1), padding=(1, 2), groups=4), (2, 16, 9, 7)),
        (LINEAR, nn.Linear(24, 10), (12, 24)),
    ):
        for parameter in module.parameters():
            nn.init.constant_(parameter, WEIGHT)
        images = torch.randn(shape)
        (found,) = open_session(op_graph(op, batch=2)).run(None, {"x": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, module(images).numpy(), rtol=1e-4, atol=1e-5)
        assert layer_calls(nn.Sequential(module), images)[0].op == (op if op is CONV else LayerOp("linear", 24, 10, (1,)))


def test_timings_are_kept_for_the_next_run_and_damage_costs_a_line(tmp_path: Path) -> None:
    table = OpTable(batch=1, threads=1, directory=tmp_path)
    times_ms = [table(CONV), table(LINEAR), table(CONV)]
    assert table.num_timed == 2
    assert times_ms[0] == times_ms[2] > 0
    again = OpTable(batch=1, threads=1, directory=tmp_path)
    assert (again(CONV), again(LINEAR), again.num_timed) == (*times_ms[:2], 0)
    again(LayerOp("conv", 16, 32, (9, 7), (3, 5), (2, 1), (1, 2), (1, 1)))
    assert again.num_timed == 1
    lines = table.path.read_text().splitlines()
    table.path.write_text(lines[0] + "\n" + lines[1][:15])
    damaged = OpTable(batch=1, threads=1, directory=tmp_path)
    assert damaged(CONV) == times_ms[0]
    damaged(LINEAR)
    assert damaged.num_timed == 1
    assert OpTable(batch=1, threads=2, directory=tmp_path).path != table.path
    other_batch = OpTable(batch=4, threads=1, directory=tmp_path)
    other_batch(CONV)
    assert other_batch.num_timed == 1


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "op_latency").write_text("a file in the way")
    assert OpTable(batch=1, threads=1, directory=tmp_path)(LINEAR) > 0
    assert "are not kept" in caplog.text


def test_a_machine_that_got_slower_is_noticed(tmp_path: Path) -> None:
    table = OpTable(batch=1, threads=1, directory=tmp_path)
    heavy = LayerOp("conv", 64, 64, (28, 28), (3, 3), (1, 1), (1, 1), (1, 1))
    true_ms = table(heavy)
    table.path.write_text(table.path.read_text().replace(str(true_ms), str(true_ms / 10)))
    assert OpTable(batch=1, threads=1, directory=tmp_path).slowdown([heavy, LINEAR]) > 4


@pytest.mark.parametrize(
    ("block", "device", "grid"),
    [(4, "cpu", 8), (8, "cpu", 8), (16, "cpu", 16), (8, "cuda", 8), (16, "cuda", 16), (32, "cuda", 32), (64, "cuda", 64)],
)
def test_the_grid_is_the_block_the_machine_computes_in(block: int, device: str, grid: int) -> None:
    def op_ms(op: LayerOp) -> float:
        return -(-op.out_channels // block) * -(-op.in_channels // block) * 1e-3

    net = nn.Sequential(nn.Conv2d(3, 256, 3), nn.Conv2d(256, 256, 3), nn.Conv2d(256, 8, 1))
    assert measured_grid(net, torch.randn(1, 3, 16, 16), op_ms=op_ms, device=device)[0] == grid
    assert measured_grid(nn.Sequential(nn.Conv2d(3, 8, 3)), torch.randn(1, 3, 16, 16), op_ms=op_ms) == (8, 0.5)


def test_a_call_whose_tensors_stay_on_the_device_computes_the_layer() -> None:
    session, images = open_session(op_graph(CONV, batch=2)), np.random.default_rng(0).random((2, 16, 9, 7), np.float32)
    binding = resident_call(session, {"x": images}, "cpu")()
    (expected,) = session.run(None, {"x": images})
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layers_and_nets_are_timed_on_the_device(tmp_path: Path) -> None:
    table = OpTable(batch=8, threads=1, device="cuda", directory=tmp_path)
    assert table(CONV) > 0
    assert table.path != OpTable(batch=8, threads=1, directory=tmp_path).path
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    assert NetClock(net, Preprocessing(size_px=(32, 32)), ("a", "b"), batch=8, device="cuda").parent_ms > 0


def test_a_smaller_net_is_timed_as_faster() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
        )

    clock = NetClock(net(128), Preprocessing(size_px=(32, 32)), ("a", "b"), batch=2)
    net_ms, parent_ms = clock.times_ms(net(32))
    assert net_ms < 0.6 * parent_ms
    assert 0 < clock.parent_fastest_ms <= clock.parent_ms


def test_the_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/model-upgrade-toolkit")
