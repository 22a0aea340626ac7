"""Stage `prune`."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.bundle import (
    WEIGHTS,
    Bundle,
    Limit,
    Measurement,
    Preprocessing,
    Report,
    Store,
    environment,
    lineage,
    recipe_yaml,
    verdict_of,
)
from toolkit.checks.regression_cost import cost_measurements
from toolkit.data import AugmentSpec, ImageSet, Normalise, Pixels, audit, load_pixels, require_sound
from toolkit.models import Deployed, restore
from toolkit.pruning import Criterion, PruneOptions, Target, compose_plans, prune_net, reestimate_batchnorm
from toolkit.pruning.criteria.taylor import Taylor
from toolkit.training import Distillation, FitOptions, FitResult, Schedule, TrainerSpec, fit, full
from toolkit.training.fit import LoggerMaker
from toolkit.training.metrics import scores

MIB = 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """How the pruned net is trained back: by default every parameter, a short cosine, taught by the unpruned parent too."""

    schedule: Schedule = field(default_factory=lambda: full(epochs=5, lr=5e-4))
    options: FitOptions = field(
        default_factory=lambda: FitOptions(batch_size=32, augment=AugmentSpec(), distillation=Distillation())
    )
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    logger: Mapping[str, LoggerMaker] | Sequence[LoggerMaker] = ()


def prune(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    run_dir: Path,
    target: Target,
    criterion: Criterion = Taylor(),  # noqa: B008 (frozen)
    options: PruneOptions = PruneOptions(),  # noqa: B008 (frozen)
    recovery: Recovery = Recovery(),
    resume: Path | None = None,
) -> Bundle:
    """Remove whole channels from a bundle's model until it meets the target, and train it back.

    The channels of least importance by the criterion go, in widths on a grid; BatchNorm is re-estimated; recovery trains
    the rest with the unpruned model as a teacher. The report `pruning` compares both: cost, measured latency, and scores on
    the validation split after each step. The same bundle, data and settings are not pruned twice. `resume` names the
    directory of an interrupted recovery.
    """
    recipe = {
        "criterion": criterion,
        "target": target,
        "options": options,
        "schedule": recovery.schedule,
        "recovery": recovery.options,
        "precision": str(recovery.trainer.autocast_dtype or "float32"),
    }
    made = lineage("prune", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None:
        log.info("Found bundle %s, made before from the same bundle, data and settings.", found.short)
        return found
    require_sound(audit(data, expected_labels=bundle.manifest.labels))
    preprocessing = bundle.manifest.preprocessing
    train, val = (load_pixels(data.split(split), preprocessing) for split in ("train", "val"))
    parent = restore(bundle)
    net, normalise = copy.deepcopy(parent), Normalise(preprocessing)
    story = {"baseline": _scores(net, val, normalise)}
    batches = _batches(
        train, normalise, num=options.num_batches * options.batch_size, size=options.batch_size, seed=options.seed
    )
    plan = prune_net(net, batches[0][0][:1], criterion=criterion, target=target, batches=batches, options=options)
    story["after_surgery"] = _scores(net, val, normalise)
    reestimate_batchnorm(net, (x for x, _ in _batches(train, normalise, num=options.bn_images, size=64, seed=options.seed)))
    story["after_batchnorm"] = _scores(net, val, normalise)
    teacher = Deployed(parent, preprocessing) if recovery.options.distillation is not None else None
    result = _recover(net, train, val, preprocessing, recovery, teacher, resume or run_dir, resume is not None)
    story["candidate"] = _scores(net, val, normalise)
    child = store.add(
        replace(bundle.manifest, plan=compose_plans(bundle.manifest.plan, plan), lineage=made), weights=net.state_dict()
    )
    _require_same(restore(child), net, batches[0][0])
    report = _report(bundle, child, parent=parent, net=net, story=story, result=result, example=val.take([0]))
    store.add_report(report)
    _tell(report)
    return child


def _recover(
    net: nn.Module,
    train: Pixels,
    val: Pixels,
    preprocessing: Preprocessing,
    recovery: Recovery,
    teacher: nn.Module | None,
    run_dir: Path,
    resume: bool,
) -> FitResult:
    """Train `net` back in place."""
    loggers = recovery.logger.values() if isinstance(recovery.logger, Mapping) else recovery.logger
    return fit(
        net,
        train=train,
        val=val,
        preprocessing=preprocessing,
        schedule=recovery.schedule,
        options=recovery.options,
        trainer=recovery.trainer,
        run_dir=run_dir,
        resume=resume,
        teacher=teacher,
        loggers=list(loggers),
    )


def _batches(train: Pixels, normalise: Normalise, *, num: int, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Up to `num` training images drawn by `seed`, normalised, with their targets, `size` a batch, none of one image."""
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:num]
    return [(normalise(train.images_NCHW[part]), train.targets_N[part]) for part in drawn.split(size) if len(part) > 1]


@torch.no_grad()
def _scores(net: nn.Module, val: Pixels, normalise: Normalise) -> dict[str, float]:
    """The validation scores of `net` in eval mode, as training computes them."""
    net.eval()
    return scores(torch.cat([net(normalise(images)) for images in val.images_NCHW.split(64)]), val.targets_N)


@torch.no_grad()
def _require_same(restored: nn.Module, net: nn.Module, images_NCHW: Tensor) -> None:
    net.eval()
    assert torch.equal(restored(images_NCHW), net(images_NCHW)), (
        "the stored bundle does not restore to the net it was made from"
    )


def _report(
    bundle: Bundle,
    child: Bundle,
    *,
    parent: nn.Module,
    net: nn.Module,
    story: Mapping[str, Mapping[str, float]],
    result: FitResult,
    example: Pixels,
) -> Report:
    """What pruning bought and what it cost: the parent is the baseline, the pruned bundle the candidate."""
    images = example.images_NCHW.numpy().astype("float32")
    measured = cost_measurements(bundle, child, {"baseline": images, "candidate": images}, rounds=100)
    faster = Limit("<=", 1.0, "a pruned model that is not faster has lost accuracy for nothing")
    measured = [
        replace(m, limit=faster, passed=faster.holds(m.value)) if m.name == "latency_median.ratio" and m.value else m
        for m in measured
    ]
    sizes = {
        side: side_bundle.file(WEIGHTS).stat().st_size / MIB
        for side, side_bundle in (("baseline", bundle), ("candidate", child))
    }
    measured += [Measurement(f"weights_size.{side}", size, unit="MiB") for side, size in sizes.items()]
    measured.append(Measurement("weights_size.ratio", sizes["candidate"] / sizes["baseline"]))
    for moment, values in story.items():
        measured += [
            Measurement(f"{name}.{moment}[split=val]", value, unit="nats" if name == "loss" else "1")
            for name, value in values.items()
        ]
    details: dict[str, Any] = {
        "channels": _widths(parent, net),
        "recovery": [dict(record) for record in result.history],
        "recovery_seconds": result.seconds,
    }
    return Report("pruning", (child.digest, bundle.digest), verdict_of(measured), tuple(measured), details, environment())


def _widths(parent: nn.Module, net: nn.Module) -> dict[str, list[int]]:
    """The output channels of every convolution and linear layer, before and after."""
    after = dict(net.named_parameters())
    return {
        name.removesuffix(".weight"): [len(weight), len(after[name])]
        for name, weight in parent.named_parameters()
        if weight.ndim > 1
    }


def _tell(report: Report) -> None:
    macs, latency = report.value("macs.ratio"), report.value("latency_median.ratio")
    log.info("Pruned to %.1f%% of the MACs; measured latency x%.2f.", 100 * macs, latency)
    if latency >= 1:
        log.warning(
            "The pruned model is not faster than its parent in onnxruntime: try a larger round_to or a stronger target."
        )
