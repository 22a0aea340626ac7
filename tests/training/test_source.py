"""Where images come from: the same pixels whichever way, fetched ahead, and nothing the host has to wait for."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.data import AugmentSpec, ImageSet, Undecoded, load_pixels
from toolkit.data.shapes import shapes
from toolkit.training import Distillation, FitOptions, Phase, TrainerSpec
from toolkit.training.feed import ImageFeed, Moment, Task
from toolkit.training.guard import FiniteGuard
from toolkit.training.loss import Objective, balanced_weights
from toolkit.training.source import Ahead
from toolkit.training.transfer import indices

CPU, META = torch.device("cpu"), torch.device("meta")


def batches(count: int, size: int = 4) -> list[Any]:
    return indices(torch.arange(count).split(size), CPU)


def test_expected_batches_are_fetched_before_they_are_asked_for_in_a_thread() -> None:
    fetched, threads, two = [], set(), threading.Event()

    def read(indices_N: torch.Tensor) -> torch.Tensor:
        fetched.append(indices_N.tolist())
        threads.add(threading.current_thread().name)
        if len(fetched) >= 2:
            two.set()
        return indices_N.to(torch.uint8)

    source, coming = Ahead(read, CPU, num=2), batches(16)
    source.expect(coming)
    assert two.wait(10)
    assert [source.take(batch).tolist() for batch in coming] == [batch.host_N.tolist() for batch in coming]
    assert fetched == [batch.host_N.tolist() for batch in coming]  # each once
    assert all(name.startswith("images-ahead") for name in threads)
    source.expect(coming)
    assert source.take(coming[2]).tolist() == coming[2].host_N.tolist()  # what was not expected is read at once
    source.expect(coming[3:])
    assert source.take(coming[3]).tolist() == coming[3].host_N.tolist()


def test_an_image_that_cannot_be_read_is_said_where_it_is_needed() -> None:
    def read(indices_N: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken.png")

    source, coming = Ahead(read, CPU), batches(4)
    source.expect(coming)
    with pytest.raises(ValueError, match=r"broken\.png"):
        source.take(coming[0])


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=60, size_px=16, num_labels=3)


def test_images_decoded_at_each_use_train_to_the_same_weights(toy: Any, run: Any, data: ImageSet, tmp_path: Path) -> None:
    decoded, later = toy.net(), toy.net()
    options = FitOptions(batch_size=16, augment=AugmentSpec())
    parts = [data.split("train"), data.split("val")]
    train, val = (load_pixels(part, toy.PREPROCESSING) for part in parts)
    run(decoded, train=train, val=val, options=options, run_dir=tmp_path / "decoded")
    train, val = (Undecoded(part, toy.PREPROCESSING) for part in parts)
    run(later, train=train, val=val, options=options, run_dir=tmp_path / "later")
    assert all(torch.equal(tensor, later.state_dict()[name]) for name, tensor in decoded.state_dict().items())


class NoWaiting(TorchDispatchMode):
    """Fails where the host asks the device for a value."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = any(isinstance(value, torch.Tensor) and value.is_meta for value in args)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
        assert not (there and any(word in str(function) for word in waits)), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_asks_the_device_for_nothing(toy: Any, train: Any, val: Any, mixed: bool) -> None:
    """On the meta device there are no values, so a step that needs one cannot run."""
    alpha = 0.5 if mixed else 0.0
    options = FitOptions(batch_size=16, augment=AugmentSpec(zoom=0.1), mixup=alpha, cutmix=alpha, distillation=Distillation())
    net = toy.net().to(META)
    task = Task(train, val, toy.PREPROCESSING, options, toy.net().to(META))
    feed = ImageFeed(net, task, device=META, channels_last=True, phase=Phase(-1, 1, 1e-3))
    objective = Objective(0.1, balanced_weights(train.targets_N, 3).to(META), options.distillation)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    guard = FiniteGuard(optimiser, device=META, where="here")
    with NoWaiting():
        for step in range(4):
            (batch,) = indices([torch.arange(step, step + 16)], META)
            found = feed.train(batch, moment=Moment(0, 0, step))
            terms_T, weights_T = objective(found.logits_NK, found.targets, found.teacher_NK)
            loss = (terms_T / weights_T).sum()
            loss.backward()
            guard.admit(step + 1, loss, loss.detach())
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixed", [False, True])
def test_cuda_sees_no_synchronisation_in_a_step(toy: Any, run: Any, monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    from toolkit.training.learner import Learner

    step, seen = Learner._step, []

    def watched_step(learner: Learner) -> None:
        torch.cuda.set_sync_debug_mode("error" if seen else "default")  # the first one allocates and picks kernels
        try:
            step(learner)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(1)

    monkeypatch.setattr(Learner, "_step", watched_step)
    alpha = 0.5 if mixed else 0.0
    options = FitOptions(batch_size=16, augment=AugmentSpec(), mixup=alpha, ema_decay=0.9, class_weights="balanced")
    run(toy.net(), options=options, trainer=TrainerSpec(accelerator="gpu"))
    assert len(seen) > 5
