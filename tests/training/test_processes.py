"""Two processes that share each batch end with the weights of one process that has it alone: classes weighted, and taught."""

import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from tests.children import launched
from toolkit.errors import UsageError
from toolkit.models import find_head
from toolkit.training import processes, sharding
from toolkit.training.checkpoint import Checkpoints

SCRIPT = """
import os
import signal
import sys
from pathlib import Path
import torch
from tests.training.conftest import PREPROCESSING, make_net, make_pixels
from toolkit.models import Deployed
from toolkit.training import Distillation, FitOptions, Phase, Schedule, TrainerSpec, fit, sharding

torch.set_num_threads(1)
sharding.LEAST_BLOCK = 64  # the toy's blocks are small
strategy, devices, run_dir, stop_at = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
rank, resume = int(os.environ.get("RANK", 0)), (run_dir / "run.json").exists()
phases = (Phase(0, 2, 3e-3, augment=False), Phase(-1, 2, 2e-3, 0.5, augment=False))
options = FitOptions(
    batch_size=16, class_weights="balanced", label_smoothing=0.1, ema_decay=0.9, freeze_batchnorm=True,
    distillation=Distillation(0.5, 2.0),
)
spec = TrainerSpec(accelerator="cpu", devices=devices, strategy=strategy, channels_last=False)
net = make_net()
net[4].p = 0.0
if stop_at and (strategy == "ddp" or rank == devices - 1):  # in shards one process alone is told to end, in its second phase
    step = torch.optim.AdamW.step
    calls = []
    def counted(self, *arguments):
        calls.append(0)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)
    torch.optim.AdamW.step = counted
result = fit(
    net, train=make_pixels(100), val=make_pixels(50, seed=1), preprocessing=PREPROCESSING,
    schedule=Schedule("both", phases), options=options, trainer=spec, run_dir=run_dir, resume=resume,
    teacher=Deployed(make_net(seed=7), PREPROCESSING),
)
torch.save({"net": net.state_dict(), "history": list(result.history)}, run_dir / f"weights-{rank}.pt")
"""


def run_script(*, strategy: str, num_processes: int, run_dir: Path, stop_at: int = 0) -> list[int]:
    return launched(SCRIPT, strategy, num_processes, run_dir, stop_at, num_processes=num_processes)


def results(run_dir: Path) -> list[dict]:
    return [torch.load(path, weights_only=True) for path in sorted(run_dir.glob("weights-*.pt"))]


def assert_same(one: dict, other: dict) -> None:
    for name, tensor in one["net"].items():
        assert torch.allclose(tensor, other["net"][name], rtol=1e-4, atol=1e-6), name
    for first, second in zip(one["history"], other["history"], strict=True):
        for key in set(first) - {"seconds"}:
            assert first[key] == pytest.approx(second[key], rel=1e-4, abs=1e-6), key


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one process makes of the toy."""
    folder = tmp_path_factory.mktemp("one")
    assert run_script(strategy="auto", num_processes=1, run_dir=folder / "run") == [0]
    (result,) = results(folder / "run")
    return result


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_agree_with_one(one: dict, tmp_path: Path) -> None:
    assert run_script(strategy="ddp", num_processes=2, run_dir=tmp_path / "run") == [0, 0]
    for result in results(tmp_path / "run"):
        assert_same(one, result)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_stopped_within_an_epoch_and_resumed_agree_with_one(strategy: str, one: dict, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    codes = run_script(strategy=strategy, num_processes=2, run_dir=run_dir, stop_at=17)
    assert codes == [128 + signal.SIGTERM] * 2  # in shards the signal reached one of them, and both left at the same step
    state = Checkpoints(run_dir / "checkpoints").load()
    assert state is not None
    assert state["course"]["num_steps"] == 17
    assert {name: tensor.shape for name, tensor in state["net"].items()} == {
        name: tensor.shape for name, tensor in one["net"].items()
    }
    assert not results(run_dir)
    assert run_script(strategy=strategy, num_processes=2, run_dir=run_dir) == [0, 0]
    found = results(run_dir)
    assert len(found) == 2
    for result in found:
        assert_same(one, result)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_b_16", {"EncoderBlock": 12, "Conv2d": 1}),
        ("resnet50", {"Bottleneck": 13}),
        ("swin_v2_t", {"SwinTransformerBlockV2": 12, "PatchMergingV2": 2}),
    ],
)
def test_a_net_is_gathered_block_by_block(name: str, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        net = getattr(models, name)()
    head = net.get_submodule(find_head(net))
    found = Counter(type(module).__name__ for module in sharding.blocks(net, head))
    assert dict(found) == expected


def test_a_net_that_cannot_be_split_is_refused_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(UsageError, match=r"'1\.weight'.*trainer=ddp"):
        sharding.shard(net, net[1], device_type="cpu")


@pytest.mark.parametrize(
    ("variables", "first"), [({}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "2", "LOCAL_RANK": "0"}, False)]
)
def test_only_the_first_process_speaks_before_they_have_met(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.is_first() is first
