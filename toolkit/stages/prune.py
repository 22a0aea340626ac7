"""Stage `prune`.

That the pruned net comes back from its bundle is the postcondition: it is proven, and the report made, before the bundle is
published. A bundle whose report is missing was cut off in between; it is made again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.backends import require_runner
from toolkit.bundle import Bundle, Plan, Preprocessing, Report, Store, environment, lineage, recipe_yaml
from toolkit.bundle.atomic import write_atomic
from toolkit.checks.pruning_report import pruning_report, require_restorable, unpublished, widths
from toolkit.checks.pruning_study import study
from toolkit.checks.pruning_target import Case, Reached, prune_to, with_grid
from toolkit.checks.training_overlap import seen_images
from toolkit.data import Audit, AugmentSpec, ImageSet, Normalise, Pixels, audit, decoded_pixels, require_sound
from toolkit.errors import UsageError
from toolkit.models import Deployed, require_single, restore
from toolkit.pruning import COSTS, Budget, Criterion, PruneOptions, Target, apply_plan, compose_plans, reestimate_batchnorm
from toolkit.pruning.criteria.taylor import Taylor
from toolkit.release.pruning_page import write_pruning
from toolkit.training import Distillation, FitOptions, FitResult, Pruning, Schedule, TrainerSpec, fit, full, settled
from toolkit.training.metrics import scores

PAGE, REACHED = "pruning.html", "pruned.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """How the pruned net is trained back: by default every parameter, a short cosine, taught by the unpruned parent too.

    `prune_at` moves the pruning into the training: one step at the start of each of these epochs (from 0, ascending), which
    share the way to the target evenly; where it is empty, all channels go before the first epoch.
    """

    schedule: Schedule = field(default_factory=lambda: full(epochs=5, lr=5e-4))
    options: FitOptions = field(
        default_factory=lambda: FitOptions(batch_size=32, augment=AugmentSpec(), distillation=Distillation())
    )
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    prune_at: Sequence[int] = ()

    def pruning(self, target: Target, criterion: Criterion, options: PruneOptions) -> Pruning | None:
        """The pruning that the recovery itself does; None where it is done before."""
        return Pruning(self.prune_at, Budget(*target.goal), criterion, options) if self.prune_at else None


def prune(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    run_dir: Path,
    target: Target = Target(),  # noqa: B008 (frozen)
    criterion: Criterion = Taylor(),  # noqa: B008 (frozen)
    options: PruneOptions = PruneOptions(round_to="auto"),  # noqa: B008 (frozen)
    recovery: Recovery = Recovery(),
    resume: Path | None = None,
) -> Bundle:
    """Remove whole channels from a bundle's model until it meets the target, and train it back.

    The channels of least importance by the criterion go, in widths on a grid; BatchNorm is re-estimated; recovery trains
    the rest with the unpruned model as a teacher. The report `pruning` compares both: cost, measured latency, and scores on
    the validation split after each step; it does not pass unless the pruned model is measurably faster. A page of it is
    written to `run_dir`. The same work is not done twice. `resume` names the directory of an interrupted recovery.
    """
    require_single(bundle, "pruned")
    recovery = _settled(recovery, bundle, data, resume, target=target, options=options)
    preprocessing = bundle.manifest.preprocessing
    parent, normalise = restore(bundle), Normalise(preprocessing)
    example_NCHW = normalise(torch.full((1, preprocessing.num_channels, *preprocessing.size_px), 128, dtype=torch.uint8))
    options = with_grid(options, parent, example_NCHW, target=target)
    recipe = _recipe(criterion, target, options, recovery)
    made = lineage("prune", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None and "pruning" in store.reports(found.digest):
        log.info("Found bundle %s, made before from the same bundle, data and settings.", found.short)
        return found
    findings = _audited(data, bundle)
    train, val = _decoded(data, preprocessing, store)
    net, folder, teacher = restore(bundle), Path(resume or run_dir), Deployed(parent, preprocessing)
    case = _case(net, train=train, val=val, bundle=bundle, options=options)
    steps: Any = {"criterion": criterion, "target": target, "options": options}
    details = study(case, folder=folder, origin={"bundle": bundle.digest, "data": data.fingerprint()}, **steps)
    story = {"baseline": _scores(net, val, normalise)}
    reached = _surgery(case, recovery, folder=folder, resume=resume is not None, **steps)
    story |= _moments(case, val, normalise) if reached.plan else {}
    result = _recover(case, train, val, recovery, teacher, recovery.pruning(**steps), folder, resume is not None)
    story["candidate"] = _scores(net, val, normalise)
    plan = compose_plans(bundle.manifest.plan, compose_plans(reached.plan, result.plan))
    manifest = replace(bundle.manifest, plan=plan, lineage=made)
    require_restorable(manifest, net, normalise(val.images_NCHW[:16]))
    images_NCHW = val.images_NCHW[torch.arange(target.batch) % len(val)].numpy().astype("float32")
    details |= {**reached.details, "channels": widths(parent, net), **_course(result)}
    with unpublished(manifest, net) as staged:
        report = pruning_report(
            bundle, staged, images_NCHW=images_NCHW, story=story, target=target, found=reached.measurements, details=details
        )
    child = store.add(manifest, weights=net.state_dict())
    audited = Report("data", (child.digest,), "pass", details=findings.as_plain(), environment=environment())
    store.add_report(audited, tensors=seen_images(data))
    store.add_report(report)
    write_pruning(report, folder / PAGE)
    _tell(report, folder / PAGE)
    return child


def _require_steps(recovery: Recovery, target: Target, options: PruneOptions) -> None:
    """Raise where the pruning cannot be done inside the recovery, or latency cannot be measured where it is asked for."""
    require_runner("onnx", target.device)
    if recovery.prune_at and target.goal[0] not in COSTS:
        raise UsageError(
            f"recovery.prune_at works for targets that follow from widths (macs, params, ratio); target.{target.goal[0]} is "
            "searched for by measuring. Prune before the recovery (recovery.prune_at=[]), or set target.macs."
        )
    if recovery.prune_at and options.steps > 1:
        raise UsageError("recovery.prune_at says when each step is taken: leave options.steps at 1.")


def _settled(
    recovery: Recovery, bundle: Bundle, data: ImageSet, resume: Path | None, *, target: Target, options: PruneOptions
) -> Recovery:
    """The recovery, refused where it does not go with the rest, with a number for a batch size of "auto"."""
    _require_steps(recovery, target, options)
    if recovery.options.batch_size != "auto":
        return recovery
    spec, num_train, net = bundle.manifest.preprocessing, len(data.split("train")), restore(bundle)
    number = settled(recovery.options, net, preprocessing=spec, num_train=num_train, trainer=recovery.trainer, resume=resume)
    return replace(recovery, options=number)


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


def _recipe(criterion: Criterion, target: Target, options: PruneOptions, recovery: Recovery) -> dict[str, Any]:
    """What decides the pruned model, beside the bundle and the data."""
    return {
        "criterion": criterion,
        "target": target,
        "options": options,
        "schedule": recovery.schedule,
        "recovery": recovery.options,
        "precision": str(recovery.trainer.autocast_dtype or "float32"),
        **({"prune_at": list(recovery.prune_at)} if recovery.prune_at else {}),
    }


def _course(result: FitResult) -> dict[str, Any]:
    return {"recovery": [dict(record) for record in result.history], "recovery_seconds": result.seconds}


def _moments(case: Case, val: Pixels, normalise: Normalise) -> dict[str, dict[str, float]]:
    """Scores straight after surgery and after BatchNorm is re-estimated, which is done here."""
    after_surgery = _scores(case.net, val, normalise)
    case.refresh(case.net)
    return {"after_surgery": after_surgery, "after_batchnorm": _scores(case.net, val, normalise)}


def _case(net: nn.Module, *, train: Pixels, val: Pixels, bundle: Bundle, options: PruneOptions) -> Case:
    """The net with the images that rate, refresh and score it."""
    preprocessing = bundle.manifest.preprocessing
    normalise = Normalise(preprocessing)
    num = options.num_batches * options.batch_size
    batches = _batches(train, normalise, num=num, size=options.batch_size, seed=options.seed)

    def refresh(net: nn.Module) -> int:
        drawn = _batches(train, normalise, num=options.bn_images, size=64, seed=options.seed)
        return reestimate_batchnorm(net, (images_NCHW for images_NCHW, _ in drawn))

    return Case(
        net=net,
        example_NCHW=batches[0][0][:1],
        preprocessing=preprocessing,
        labels=bundle.manifest.labels,
        batches=batches,
        score=lambda net: _scores(net, val, normalise)["accuracy"],
        refresh=refresh,
    )


def _surgery(
    case: Case,
    recovery: Recovery,
    *,
    criterion: Criterion,
    target: Target,
    options: PruneOptions,
    folder: Path,
    resume: bool,
) -> Reached:
    """Prune the net of `case` in place, unless the recovery does; what an interrupted run had decided is not decided anew."""
    if recovery.prune_at:
        return Reached(Plan(), details={"round_to": options.grid, "prune_at": list(recovery.prune_at)})
    kept = folder / REACHED
    if resume and kept.is_file():
        reached = Reached.from_json(kept.read_bytes(), str(kept))
        apply_plan(case.net, reached.plan)
        return reached
    reached = prune_to(case, criterion=criterion, target=target, options=options)
    write_atomic(kept, reached.to_json())
    return reached


def _recover(
    case: Case,
    train: Pixels,
    val: Pixels,
    recovery: Recovery,
    parent: nn.Module,
    pruning: Pruning | None,
    run_dir: Path,
    resume: bool,
) -> FitResult:
    """Train the net of `case` back in place, taught by its parent where the options ask for it, pruning it on the way."""
    return fit(
        case.net,
        train=train,
        val=val,
        preprocessing=case.preprocessing,
        schedule=recovery.schedule,
        options=recovery.options,
        trainer=recovery.trainer,
        run_dir=run_dir,
        resume=resume,
        teacher=parent if recovery.options.distillation is not None else None,
        pruning=pruning,
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


def _tell(report: Report, page: Path) -> None:
    macs, latency = report.value("macs.ratio"), report.value("latency_median.ratio")
    log.info("Pruned to %.1f%% of the MACs; measured latency x%.2f. The page: %s", 100 * macs, latency, page)
    if report.verdict != "pass":
        missed = [m for m in report.measurements if m.limit is not None and m.passed is not True]
        log.warning(
            "This is no improvement yet: %s. Try a larger round_to, a stronger target or a longer recovery.",
            "; ".join(f"{m.name} is {m.value:.3g}, which must be {m.limit} ({m.limit.reason})" for m in missed if m.limit),
        )
