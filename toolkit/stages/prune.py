"""Stage `prune`.

That the pruned net comes back from its bundle is the postcondition: it is proven, and the report made, before the bundle is
published. A bundle whose report is missing was cut off in between; it is made again.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.bundle import Bundle, Plan, Preprocessing, Report, Store, environment, lineage, recipe_yaml
from toolkit.checks.pruning_report import pruning_report, require_restorable, unpublished, widths
from toolkit.data import Audit, AugmentSpec, ImageSet, Normalise, Pixels, audit, decoded_pixels, require_sound
from toolkit.models import Deployed, require_single, restore
from toolkit.pruning import Criterion, PruneOptions, Target, compose_plans, prune_net, reestimate_batchnorm
from toolkit.pruning.criteria.taylor import Taylor
from toolkit.training import Distillation, FitOptions, FitResult, Schedule, TrainerSpec, fit, full, settled
from toolkit.training.metrics import scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """How the pruned net is trained back: by default every parameter, a short cosine, taught by the unpruned parent too."""

    schedule: Schedule = field(default_factory=lambda: full(epochs=5, lr=5e-4))
    options: FitOptions = field(
        default_factory=lambda: FitOptions(batch_size=32, augment=AugmentSpec(), distillation=Distillation())
    )
    trainer: TrainerSpec = field(default_factory=TrainerSpec)


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
    the rest with the unpruned model as a teacher. The report `pruning` compares both: cost, measured latency, and validation
    scores after each step. The same work is not done twice. `resume` names the directory of an interrupted recovery.
    """
    require_single(bundle, "pruned")
    recovery = _settled(recovery, bundle, data, resume)
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
    if found is not None and "pruning" in store.reports(found.digest):
        log.info("Found bundle %s, made before from the same bundle, data and settings.", found.short)
        return found
    findings = _audited(data, bundle)
    preprocessing = bundle.manifest.preprocessing
    train, val = _decoded(data, preprocessing, store)
    parent, net, normalise = restore(bundle), restore(bundle), Normalise(preprocessing)
    plan, story = _surgery(net, train=train, val=val, normalise=normalise, criterion=criterion, target=target, options=options)
    teacher = Deployed(parent, preprocessing) if recovery.options.distillation is not None else None
    result = _recover(net, train, val, preprocessing, recovery, teacher, Path(resume or run_dir), resume is not None)
    story["candidate"] = _scores(net, val, normalise)
    manifest = replace(bundle.manifest, plan=compose_plans(bundle.manifest.plan, plan), lineage=made)
    require_restorable(manifest, net, normalise(val.images_NCHW[:16]))
    details = {
        "channels": widths(parent, net),
        "recovery": [dict(record) for record in result.history],
        "recovery_seconds": result.seconds,
    }
    image_NCHW = val.images_NCHW[:1].numpy().astype("float32")
    with unpublished(manifest, net) as staged:
        report = pruning_report(bundle, staged, image_NCHW=image_NCHW, story=story, details=details)
    child = store.add(manifest, weights=net.state_dict())
    store.add_report(Report("data", (child.digest,), "pass", details=findings.as_plain(), environment=environment()))
    store.add_report(report)
    _tell(report)
    return child


def _settled(recovery: Recovery, bundle: Bundle, data: ImageSet, resume: Path | None) -> Recovery:
    """The recovery with a number for a batch size of "auto", found on the unpruned net."""
    if recovery.options.batch_size != "auto":
        return recovery
    spec, num_train, net = bundle.manifest.preprocessing, len(data.split("train")), restore(bundle)
    options = settled(recovery.options, net, preprocessing=spec, num_train=num_train, trainer=recovery.trainer, resume=resume)
    return replace(recovery, options=options)


def _audited(data: ImageSet, bundle: Bundle) -> Audit:
    """What is wrong with the data: refused where pruning by it makes no sense, said where it does."""
    findings = audit(data, expected_labels=bundle.manifest.labels)
    require_sound(findings)
    for warning in findings.warnings:
        log.warning("%s", warning)
    return findings


def _decoded(data: ImageSet, preprocessing: Preprocessing, store: Store) -> list[Pixels]:
    """The training and the validation images."""
    cache = store.root / "cache" / "pixels"
    return [decoded_pixels(data.split(split), preprocessing, cache=cache) for split in ("train", "val")]


def _surgery(
    net: nn.Module,
    *,
    train: Pixels,
    val: Pixels,
    normalise: Normalise,
    criterion: Criterion,
    target: Target,
    options: PruneOptions,
) -> tuple[Plan, dict[str, dict[str, float]]]:
    """Prune `net` in place and re-estimate its BatchNorm; the plan, and the validation scores at each moment."""
    story = {"baseline": _scores(net, val, normalise)}
    num = options.num_batches * options.batch_size
    batches = _batches(train, normalise, num=num, size=options.batch_size, seed=options.seed)
    plan = prune_net(net, batches[0][0][:1], criterion=criterion, target=target, batches=batches, options=options)
    story["after_surgery"] = _scores(net, val, normalise)
    reestimate_batchnorm(net, (x for x, _ in _batches(train, normalise, num=options.bn_images, size=64, seed=options.seed)))
    story["after_batchnorm"] = _scores(net, val, normalise)
    return plan, story


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


def _tell(report: Report) -> None:
    macs, latency = report.value("macs.ratio"), report.value("latency_median.ratio")
    log.info("Pruned to %.1f%% of the MACs; measured latency x%.2f.", 100 * macs, latency)
    if latency >= 1:
        log.warning(
            "The pruned model is not faster than its parent in onnxruntime: try a larger round_to or a stronger target."
        )
