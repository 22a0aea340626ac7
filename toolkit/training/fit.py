"""Fit a net to images: the one way anything is trained, whether to transfer, to retrain or to recover from pruning."""

import contextlib
import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from toolkit.bundle import Plan, Preprocessing, recipe_yaml
from toolkit.bundle.atomic import write_atomic
from toolkit.data import Images
from toolkit.errors import EnvironmentProblem, InputRefused, ToolkitError, UsageError
from toolkit.models import stage_names
from toolkit.training import processes
from toolkit.training.allocator import kept_memory
from toolkit.training.batch_size import RUN, out_of_memory
from toolkit.training.checkpoint import Checkpoints
from toolkit.training.compiling import planned, with_compile
from toolkit.training.course import Course
from toolkit.training.feed import Task
from toolkit.training.freeze import restored
from toolkit.training.layout import with_layout
from toolkit.training.learner import Learner
from toolkit.training.metrics import require_defined
from toolkit.training.options import FitOptions
from toolkit.training.order import num_batches
from toolkit.training.progress import Progress
from toolkit.training.pruning import PruneInFit, Pruning
from toolkit.training.schedule import Schedule
from toolkit.training.signals import Interrupted, Signals, Terminated
from toolkit.training.surroundings import Stopped, Surroundings
from toolkit.training.trainer import LoggerMaker, TrainerSpec, num_threads, run_lightning

CHECKPOINTS = "checkpoints"
FEATURES = "features"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    `best_metric` is the monitored metric of the weights the net now holds; `history` has one record an epoch (phase,
    epoch, step, lr, losses, metrics, seconds so far); `num_images` counts the images learned from, over all epochs;
    `seconds` is the time in training and validation, over all parts of an interrupted run, and `feature_seconds` what of
    it went into computing a frozen net's features. `plan` is what the fit cut out of the net.
    """

    monitor: str
    best_metric: float
    history: tuple[Mapping[str, float], ...]
    num_steps: int
    num_images: int
    seconds: float
    feature_seconds: float
    plan: Plan = field(default_factory=Plan)


def fit(
    net: nn.Module,
    *,
    train: Images,
    val: Images,
    preprocessing: Preprocessing,
    schedule: Schedule,
    options: FitOptions,
    trainer: TrainerSpec,
    run_dir: Path,
    resume: bool = False,
    teacher: nn.Module | None = None,
    pruning: Pruning | None = None,
    loggers: Sequence[LoggerMaker] = (),
) -> FitResult:
    """Train `net` in place on `train`, choosing weights on `val`; afterwards it holds the best ones, on the CPU.

    `net` takes normalised float images_NCHW; `teacher` (for `options.distillation`) takes float pixels 0..255. `run_dir`
    receives checkpoints and logs (`loggers` are further ones than the trainer's); `resume` continues the run it holds, to the
    weights the uninterrupted run would have reached (bit for bit on the CPU). `pruning` cuts channels out of the net on the
    way; the best weights are then those after the last cut. Each parameter's `requires_grad` and each module's mode are as
    before.

    Raises `UsageError` and `InputRefused` for settings and data that do not fit, `Diverged` at the first step that is not
    finite, `Terminated` and `Interrupted` after a signal, when the run has saved.
    """
    task = Task(train, val, preprocessing, options, teacher)
    _require_sound(task)
    if pruning is not None:
        pruning.require_fits(schedule, options)
        if trainer.strategy == "fsdp":
            raise UsageError("a net in shards cannot be pruned inside a fit: use trainer=ddp, or set recovery.prune_at=null.")
    trainer.require_supported()
    cuda = [torch.cuda.current_device()] if trainer.device_type == "cuda" else []
    with kept_memory(), Signals() as signals, num_threads(trainer.threads), torch.random.fork_rng(devices=cuda), restored(net):
        checkpoints = Checkpoints(run_dir / CHECKPOINTS)
        identity = _identity(net, task, schedule, pruning)
        state = _open_run(run_dir, identity, checkpoints) if resume else _start_run(run_dir, identity, checkpoints)
        trainer = with_layout(trainer, net, preprocessing, batch_size=options.images_a_step, run_dir=run_dir, resume=resume)
        trainer = with_compile(
            trainer, net, preprocessing, steps=_steps(task, schedule, trainer), run_dir=run_dir, resume=resume
        )
        torch.manual_seed(options.seed)
        with Progress(options.monitor, quiet=not processes.is_first()) as progress, _layout(net, trainer):
            trained = copy.deepcopy(net) if trainer.strategy == "fsdp" else net  # which takes a module apart for good
            stages = stage_names(net)
            head = trained.get_submodule(stages[-1][0])
            callbacks = [] if pruning is None else [PruneInFit(pruning, net, task)]
            around = Surroundings(trainer, stages, head, checkpoints, run_dir / FEATURES, signals, progress)
            learner = Learner(trained, task=task, schedule=schedule, around=around, state=state)
            if not learner.course.finished:
                named = trainer.loggers.values() if isinstance(trainer.loggers, Mapping) else trainer.loggers
                _run(learner, trainer, loggers=_opened([*loggers, *named], run_dir), callbacks=callbacks, run_dir=run_dir)
            net.load_state_dict(learner.course.best)
    if processes.is_first():
        shutil.rmtree(run_dir / FEATURES, ignore_errors=True)
    return _result(learner.course, options.monitor, len(train))


def _steps(task: Task, schedule: Schedule, trainer: TrainerSpec) -> dict[int, int]:
    """The batch size, and how many steps go through the whole net."""
    count = num_batches(len(task.train), batch_size=task.options.images_a_step)
    return {task.options.images_a_step: planned(schedule, num_batches=count, cached=trainer.cache_features)}


@contextlib.contextmanager
def _layout(net: nn.Module, trainer: TrainerSpec) -> Iterator[None]:
    """Lay the weights out as `trainer` wants them, and plainly again afterwards."""
    if trainer.channels_last is True:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _run(
    learner: Learner, trainer: TrainerSpec, *, loggers: Sequence[Logger], callbacks: Sequence[Callback], run_dir: Path
) -> None:
    signals = learner.around.signals
    try:
        run_lightning(learner, trainer, loggers=loggers, callbacks=callbacks, run_dir=run_dir)
    except Stopped:
        if trainer.strategy != "fsdp":  # all its processes have saved together
            learner.save()
        message = f"Stopped by a signal at step {learner.course.num_steps}; continue with resume={run_dir}"
        logger.warning(message)
        raise Terminated(message) if signals.terminated else Interrupted(message) from None
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, ToolkitError) or not out_of_memory(error):
            raise
        images = f"{learner.task.options.batch_size} images of {'x'.join(map(str, learner.task.train.shape[1:]))}"
        raise EnvironmentProblem(
            f"A batch of {images} does not fit into the memory of {learner.device}. options.batch_size=auto finds the largest "
            f"that does; or set a smaller one, or trainer.precision=bf16-mixed where the device has it."
        ) from error
    except SystemExit:  # Lightning's answer to a second interrupt
        raise KeyboardInterrupt from None


def _result(course: Course, monitor: str, num_images: int) -> FitResult:
    assert course.best_value is not None
    return FitResult(
        monitor=monitor,
        best_metric=course.best_value,
        history=tuple(course.history),
        num_steps=course.num_steps,
        num_images=num_images * len(course.history),
        seconds=course.seconds,
        feature_seconds=course.notes.get("feature_seconds", 0.0),
        plan=course.removed,
    )


def _opened(loggers: Sequence[LoggerMaker], run_dir: Path) -> list[Logger]:
    return [entry if isinstance(entry, Logger) else entry(run_dir) for entry in loggers]


def _require_sound(task: Task) -> None:
    train, val, options = task.train, task.val, task.options
    if len(train) == 0 or len(val) == 0:
        raise InputRefused(f"training needs images to learn from and to validate on; got {len(train)} and {len(val)}")
    if tuple(train.labels) != tuple(val.labels):
        raise InputRefused(f"training labels {list(train.labels)} differ from validation labels {list(val.labels)}")
    require_defined(options.monitor, val.targets_N, len(train.labels))
    if options.distillation is not None and task.teacher is None:
        raise UsageError("options.distillation is set, but there is no teacher to learn from")


# -- the run directory ------------------------------------------------------------------------------------------------


def _identity(net: nn.Module, task: Task, schedule: Schedule, pruning: Pruning | None) -> dict[str, str]:
    """What makes two runs the same run, by name: settings as YAML, weights and data by hash."""
    options, train, val = task.options, task.train, task.val
    taught = {} if task.teacher is None else {"teacher": _hash(task.teacher.state_dict().values())}
    cut = {} if pruning is None else {"pruning": recipe_yaml({"pruning": pruning})}
    return {
        **taught,
        **({} if train.shards is None else {"order of shards": _hash([train.shards.shard_N], [str(train.shards.shuffle)])}),
        **cut,
        "schedule": recipe_yaml({"schedule": schedule}),
        "options": recipe_yaml({"options": options}),
        "starting weights": _hash(net.state_dict().values()),
        "training images": _hash([train.targets_N, torch.tensor(train.shape)], train.keys),
        "validation images": _hash([val.targets_N, torch.tensor(val.shape)], val.keys),
    }


def _hash(tensors: Iterable[Tensor], words: Sequence[str] = ()) -> str:
    sha256 = hashlib.sha256("\0".join(words).encode())
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha256.update(flat.numpy().data)
    return sha256.hexdigest()


def _start_run(run_dir: Path, identity: Mapping[str, str], checkpoints: Checkpoints) -> None:
    """Refuse to write over another run, and say which run this is."""
    if checkpoints.paths():
        raise UsageError(
            f"{run_dir} already holds a run. Continue it with resume={run_dir}, or give another run_dir (hydra.run.dir=...)."
        )
    if processes.is_first():
        shutil.rmtree(run_dir / FEATURES, ignore_errors=True)  # of a run that ended before its first checkpoint
    if processes.rank() == 0:
        write_atomic(run_dir / RUN, json.dumps(identity, indent=1).encode())


def _open_run(run_dir: Path, identity: Mapping[str, str], checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The state to continue from; None for a run that was stopped before its first checkpoint."""
    try:
        before = json.loads((run_dir / RUN).read_bytes())
    except (OSError, ValueError) as error:
        raise InputRefused(f"{run_dir} holds no run to resume (no readable {RUN}). Give the directory of a run.") from error
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        raise InputRefused(
            f"the run in {run_dir} had other {', '.join(changed)}: resume it with the settings it was started with "
            f"({run_dir / RUN} and {run_dir / '.hydra'} hold them), or start a new run."
        )
    state = checkpoints.load()
    if state is None:
        logger.info("the run in %s was stopped before its first checkpoint: starting it from the beginning", run_dir)
    return state
