"""A run that is killed and resumed ends with the weights of the run that was left alone, bit for bit."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import InputRefused, UsageError
from toolkit.training import FitOptions, Schedule, TrainerSpec

EVERY_STEP = TrainerSpec(accelerator="cpu", checkpoint_every_s=0)
NUM_STEPS_A_PHASE = (18, 18, 24)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def undisturbed(toy: Any, train: Any, val: Any, everything: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights and history of the uninterrupted run."""
    schedule, options = everything
    net = toy.net()
    result = toy.fit(
        net, train=train, val=val, schedule=schedule, options=options, trainer=toy.CPU, run_dir=tmp_path_factory.mktemp("whole")
    )
    return weights(net), result


def serial(run_dir: Path) -> int:
    """The number of the newest checkpoint, -1 before the first."""
    return max((int(path.name[:8]) for path in (run_dir / "checkpoints").glob("0*.ckpt")), default=-1)


@pytest.mark.parametrize(
    ("number", "checkpoints_before", "code"),
    [
        (signal.SIGKILL, 8, -signal.SIGKILL),
        (signal.SIGKILL, 30, -signal.SIGKILL),
        (signal.SIGTERM, 45, 143),
        (signal.SIGINT, 55, 130),
    ],
    ids=["killed in the head phase", "killed in the second phase", "terminated", "interrupted"],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    toy: Any, run: Any, everything: Any, undisturbed: Any, tmp_path: Path, number: int, checkpoints_before: int, code: int
) -> None:
    schedule, options = everything
    settings = {"schedule": schedule, "options": options, "run_dir": tmp_path / "run"}

    ended = toy.in_child(
        settings,
        trainer=EVERY_STEP,
        folder=tmp_path,
        number=number,
        when=lambda: serial(tmp_path / "run") >= checkpoints_before,
    )
    assert ended == code

    net = toy.net()
    result = run(net, **settings, resume=True)
    expected, whole = undisturbed
    assert_identical(weights(net), expected)
    assert result.num_steps == whole.num_steps
    assert [without_time(record) for record in result.history] == [without_time(record) for record in whole.history]


def without_time(record: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key != "seconds"}


def test_a_signal_without_a_checkpoint_before_it_saves_one(toy: Any, run: Any, everything: Any, tmp_path: Path) -> None:
    schedule, options = everything
    settings = {"schedule": schedule, "options": options, "run_dir": tmp_path / "run"}
    never = TrainerSpec(accelerator="cpu", checkpoint_every_s=1e6)
    started = tmp_path / "run" / "run.json"
    assert toy.in_child(settings, trainer=never, folder=tmp_path, number=signal.SIGTERM, when=started.exists) == 143
    assert serial(tmp_path / "run") >= 0


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    toy: Any, run: Any, everything: Any, undisturbed: Any, tmp_path: Path
) -> None:
    schedule, options = everything
    settings = {"schedule": schedule, "options": options, "run_dir": tmp_path / "run"}
    when = lambda: serial(tmp_path / "run") >= 25  # noqa: E731
    toy.in_child(settings, trainer=EVERY_STEP, folder=tmp_path, number=signal.SIGKILL, when=when)
    newest = max((tmp_path / "run" / "checkpoints").glob("0*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))

    net = toy.net()
    run(net, **settings, resume=True)
    assert_identical(weights(net), undisturbed[0])


def test_a_finished_run_is_not_trained_again(toy: Any, run: Any) -> None:
    first, second = toy.net(), toy.net()
    once = run(first)
    again = run(second, resume=True)
    assert again == once
    assert_identical(weights(second), weights(first))


def test_resuming_with_other_settings_is_refused_by_name(toy: Any, run: Any, everything: Any) -> None:
    run(toy.net())
    with pytest.raises(InputRefused, match="options"):
        run(toy.net(), options=FitOptions(batch_size=8), resume=True)
    with pytest.raises(InputRefused, match="schedule"):
        run(toy.net(), schedule=everything[0], resume=True)
    with pytest.raises(InputRefused, match="starting weights"):
        run(toy.net(seed=1), resume=True)


def test_resuming_nothing_is_refused(toy: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no run to resume"):
        run(toy.net(), run_dir=tmp_path / "elsewhere", resume=True)


def test_a_directory_with_a_run_is_not_overwritten(toy: Any, run: Any) -> None:
    run(toy.net())
    with pytest.raises(UsageError, match="resume="):
        run(toy.net())


def test_a_run_stopped_before_its_first_checkpoint_starts_again(toy: Any, run: Any, tmp_path: Path) -> None:
    net = toy.net()
    run(net)
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        path.unlink()
    again = toy.net()
    run(again, resume=True)
    assert_identical(weights(again), weights(net))


def test_when_all_checkpoints_are_damaged_it_says_so(toy: Any, run: Any, tmp_path: Path) -> None:
    run(toy.net())
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputRefused, match="damaged"):
        run(toy.net(), resume=True)


def test_the_run_file_is_plain(toy: Any, run: Any, tmp_path: Path) -> None:
    run(toy.net(), schedule=Schedule("one", (replace(toy.PHASE, epochs=1),)))
    assert "one" in json.loads((tmp_path / "run" / "run.json").read_text())["schedule"]
