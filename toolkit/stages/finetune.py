"""Stage `finetune`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.backends import as_module
from toolkit.bundle import (
    Bundle,
    Lineage,
    Manifest,
    Measurement,
    Preprocessing,
    Report,
    Store,
    environment,
    lineage,
    recipe_yaml,
)
from toolkit.checks.training_overlap import seen_images
from toolkit.data import Audit, Images, ImageSet, audit, place_pixels, require_sound
from toolkit.models import (
    LabelChanges,
    label_changes,
    pixel_contract,
    replace_head_by_label,
    require_single,
    restore,
    teacher_for,
    teaching_facts,
)
from toolkit.training import Distillation, FitOptions, FitResult, Schedule, TrainerSpec, fit, settled

CACHE = "cache/pixels"  # in the store

log = logging.getLogger(__name__)


def finetune(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    schedule: Schedule,
    options: FitOptions,
    trainer: TrainerSpec,
    run_dir: Path,
    teacher: Bundle | None = None,
    resume: Path | None = None,
) -> Bundle:
    """Train a bundle on data: linear probe, gradual unfreezing or everything, as the schedule says.

    The data is checked first. Where its labels differ from the bundle's, the head is replaced: rows of labels of the same name
    are carried over, the others start anew, and the report says which. The new bundle holds the weights that did best on the
    validation split; its reports are `training` and `data`. The same work is not done twice. A `teacher` that knows the data's
    labels (an ensemble, an ONNX graph or a TorchScript program too) is distilled by `options.distillation`, which counts only
    then; it sees the student's pixels at its own size, with its own normalisation, and is the new bundle's second parent.
    `resume` names the directory of an interrupted run, to be continued with the settings it had.
    """
    require_single(bundle, "trained")
    options = replace(options, distillation=(options.distillation or Distillation()) if teacher else None)
    if options.batch_size == "auto":
        options = _with_batch_size(options, bundle, data, trainer, resume)
    recipe = {"schedule": schedule, "options": options, "precision": str(trainer.autocast_dtype or "float32"), **_order(data)}
    parents = (bundle.digest, teacher.digest) if teacher else (bundle.digest,)
    made = lineage("finetune", parents=parents, data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None:
        log.info("Found bundle %s, made before from the same bundle, data and settings.", found.short)
        return found
    findings = _audited(data)
    preprocessing = bundle.manifest.preprocessing
    net, changes = _with_labels(bundle, data.labels, options.seed)
    _tell_labels(changes)

    def placed(split: str) -> Images:
        unreadable = [key for key, _ in findings.unreadable]
        return place_pixels(data.split(split), preprocessing, cache=store.root / CACHE, unreadable=unreadable)

    result = fit(
        net,
        train=placed("train"),
        val=placed("val"),
        preprocessing=preprocessing,
        schedule=schedule,
        options=options,
        trainer=trainer,
        run_dir=resume or run_dir,
        resume=resume is not None,
        teacher=_teacher(teacher, preprocessing, data.labels) if teacher else None,
    )
    child = store.add(_manifest(bundle, data.labels, made), weights=net.state_dict())
    store.add_report(_data_report(child, findings), tensors=seen_images(data))
    store.add_report(_training_report(child, result, {"labels": asdict(changes), **_taught(teacher, child)}))
    log.info("Bundle %s: %s %.4f on the validation split.", child.short, result.monitor, result.best_metric)
    return child


def _order(data: ImageSet) -> dict[str, Any]:
    """What the recipe says of the order of images that lie in shards; nothing for others."""
    return {} if data.shuffle is None else {"shuffle": data.shuffle}


def _with_batch_size(
    options: FitOptions, bundle: Bundle, data: ImageSet, trainer: TrainerSpec, resume: Path | None
) -> FitOptions:
    """The options with the batch size that fits the machine, or that an interrupted run had."""
    net, _ = _with_labels(bundle, data.labels, options.seed)
    spec, num_train = bundle.manifest.preprocessing, len(data.split("train"))
    return settled(options, net, preprocessing=spec, num_train=num_train, trainer=trainer, resume=resume)


def _audited(data: ImageSet) -> Audit:
    """What is wrong with the data: refused where training makes no sense, said where it does."""
    findings = audit(data)
    require_sound(findings)
    for warning in findings.warnings:
        log.warning("%s", warning)
    return findings


def _teacher(bundle: Bundle, preprocessing: Preprocessing, labels: Sequence[str]) -> nn.Module:
    """`bundle` as teacher, an ONNX graph through its runner."""
    return teacher_for(bundle, preprocessing=preprocessing, labels=labels, deployed=as_module(bundle))


def _taught(teacher: Bundle | None, child: Bundle) -> dict[str, Any]:
    """What the report says of the teacher; nothing where there was none."""
    if teacher is None:
        return {}
    manifest = child.manifest
    return {"teacher": teaching_facts(teacher, preprocessing=manifest.preprocessing, labels=manifest.labels)}


def _with_labels(bundle: Bundle, labels: Sequence[str], seed: int) -> tuple[nn.Module, LabelChanges]:
    """The bundle's module with a head for `labels`, and what became of its own."""
    net, changes = restore(bundle), label_changes(bundle.manifest.labels, labels)
    if tuple(labels) != tuple(bundle.manifest.labels):
        replace_head_by_label(net, bundle.manifest.labels, labels, seed=seed)
    return net, changes


def _tell_labels(changes: LabelChanges) -> None:
    if changes.new or changes.dropped:
        log.info("New head for %d labels: %s.", len(changes.carried) + len(changes.new), changes.sentence())
    if changes.similar:
        log.warning("%s", changes.hint())


def _manifest(parent: Bundle, labels: Sequence[str], made: Lineage) -> Manifest:
    """The parent's manifest with these labels and this lineage."""
    architecture = parent.manifest.architecture
    return replace(
        parent.manifest,
        architecture=replace(architecture, kwargs={**architecture.kwargs, "num_classes": len(labels)}),
        labels=tuple(labels),
        contract=pixel_contract(parent.manifest.preprocessing, len(labels)),
        lineage=made,
    )


def _data_report(child: Bundle, findings: Audit) -> Report:
    """What was found in the data; the digests of the images it was trained on are kept with it."""
    return Report("data", (child.digest,), "pass", details=findings.as_plain(), environment=environment())


def _training_report(child: Bundle, result: FitResult, facts: Mapping[str, Any]) -> Report:
    """How the training went: the best score, its time and pace, and every epoch."""
    seconds = max(result.seconds, 1e-9)
    measurements = (
        Measurement(f"val_{result.monitor}", result.best_metric, unit="nats" if result.monitor == "loss" else "1"),
        Measurement("num_steps", result.num_steps),
        Measurement("training_time", result.seconds, unit="s"),
        Measurement("feature_time", result.feature_seconds, unit="s"),
        Measurement("throughput", result.num_images / seconds, unit="images/s"),
    )
    details = {"history": [dict(record) for record in result.history], **facts}
    return Report("training", (child.digest,), "pass", measurements, details, environment())
