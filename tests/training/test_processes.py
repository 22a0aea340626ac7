"""Two processes that share each batch end with the weights of one process that has it alone: classes weighted, and taught."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.training import processes

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
from conftest import PREPROCESSING, make_net, make_pixels
from toolkit.models import Deployed
from toolkit.training import Distillation, FitOptions, Phase, Schedule, TrainerSpec, fit

torch.set_num_threads(1)
devices, run_dir = int(sys.argv[1]), Path(sys.argv[2])
phases = (Phase(0, 2, 3e-3, augment=False), Phase(-1, 2, 2e-3, 0.5, augment=False))
options = FitOptions(
    batch_size=16, class_weights="balanced", label_smoothing=0.1, ema_decay=0.9, freeze_batchnorm=True,
    distillation=Distillation(0.5, 2.0),
)
spec = TrainerSpec(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
net = make_net()
net[4].p = 0.0
result = fit(
    net, train=make_pixels(100), val=make_pixels(50, seed=1), preprocessing=PREPROCESSING,
    schedule=Schedule("both", phases), options=options, trainer=spec, run_dir=run_dir,
    teacher=Deployed(make_net(seed=7), PREPROCESSING),
)
torch.save({{"net": net.state_dict(), "history": list(result.history)}}, run_dir / f"weights-{{os.environ.get('RANK', 0)}}.pt")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def trained(script: Path, *, num_processes: int, run_dir: Path) -> dict:
    port = str(free_port())
    started = []
    for rank in range(num_processes):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes), "GROUP_RANK": "0"}
        torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", **places}
        environment = {**os.environ, **(torchrun if num_processes > 1 else {}), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(num_processes), str(run_dir)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return torch.load(next(run_dir.glob("weights-*.pt")), weights_only=True)


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    one = trained(script, num_processes=1, run_dir=tmp_path / "one")
    two = trained(script, num_processes=2, run_dir=tmp_path / "two")
    for name, tensor in one["net"].items():
        assert torch.allclose(tensor, two["net"][name], rtol=1e-4, atol=1e-6), name
    for first, second in zip(one["history"], two["history"], strict=True):
        for key in set(first) - {"seconds"}:
            assert first[key] == pytest.approx(second[key], rel=1e-4, abs=1e-6), key


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
