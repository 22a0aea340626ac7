"""What `adopt` brings into the store: a module with its weights, how its images are prepared, and the evidence for both.

Shapes: N batch, C channels, H height, W width, K classes.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.bundle import Architecture, Limit, Measurement, Preprocessing
from toolkit.bundle.atomic import sha256_file
from toolkit.errors import CheckFailed, InputRefused, UsageError, unknown_name
from toolkit.migration.fitting import fit
from toolkit.migration.legacy import MAX_FLOORS, Comparison, build_legacy, compare
from toolkit.migration.loading import load_matched
from toolkit.migration.reading import Checkpoint, open_checkpoint
from toolkit.migration.sources import find_source
from toolkit.migration.twins import open_twins, twin_file
from toolkit.models import Deployed, build, default_preprocessing, training_only

logger = logging.getLogger(__name__)

Overrides = Mapping[str, Any] | Preprocessing | None


@dataclass(frozen=True, eq=False)
class Adoption:
    """A module ready to be stored. `recipe` says what it was made from, `measurements` and `details` how well it matched."""

    architecture: Architecture
    net: nn.Module
    preprocessing: Preprocessing
    recipe: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def random_weights(architecture: Architecture, *, preprocessing: Overrides = None, seed: int = 0) -> Adoption:
    """A model with random weights drawn from `seed`; torch's global random state is untouched. Raises as `build` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(architecture)
    prepared = overridden(default_preprocessing(architecture), preprocessing)
    return Adoption(architecture, net, prepared, {"checkpoint": None, "seed": seed}, details={"notes": ["random weights"]})


def from_checkpoint(
    architecture: Architecture, checkpoint: Path | str, *, preprocessing: Overrides = None, legacy: str | None = None
) -> Adoption:
    """A model with the weights of `checkpoint`, every tensor matched; `legacy` builds the old module both must agree with.

    Raises `InputRefused` for a checkpoint that is damaged or does not fit, `CheckFailed` when old and new code disagree.
    """
    source = find_source(checkpoint, architecture)
    held = open_checkpoint(source.path, entry=source.entry)
    if source.transform_input and "transform_input" not in architecture.kwargs:
        architecture = replace(architecture, kwargs={**architecture.kwargs, "transform_input": True})
    fitted = fit(architecture, held.tensors, training_only=training_only(architecture))
    matching, origin = fitted.matching, str(checkpoint)
    conversions = load_matched(fitted.net, held.tensors, matching, origin=origin)
    notes = [*held.notes, *matching.notes, *conversions]
    if legacy is None and matching.by_order_alone:
        unproved = f"{len(matching.by_order_alone)} tensors have equals in shape and are told apart by their order alone"
        notes.append(f"{unproved}: legacy=<the old model> would prove it")
        logger.warning(
            "%s: %s. Give legacy=<module>:<callable>, or a TorchScript or .onnx file of the old model.", origin, unproved
        )
    counts = ", ".join(f"{count} {how}" for how, count in matching.counts().items())
    logger.info("%s: %d tensors matched (%s).", origin, len(matching.sources), "; ".join([counts, *notes]))
    prepared = overridden(source.preprocessing or default_preprocessing(architecture), preprocessing)
    digest = sha256_file(source.path)
    measurements = [Measurement(f"tensors {how}", count, unit="tensors") for how, count in matching.counts().items()]
    details: dict[str, Any] = {"checkpoint": origin, "sha256": digest, "notes": notes, "tensors": matching.table()}
    if legacy is not None:
        native = source.preprocessing or default_preprocessing(architecture)
        comparison, run_as = _agreement(legacy, held, fitted.net, prepared=prepared, native=native)
        measurements += _measured(comparison)
        details["legacy"] = {"code": legacy, "run_as": run_as, **asdict(comparison)}
    origin_recipe = {"file": source.path.name, "sha256": digest, "entry": held.entry}
    return Adoption(fitted.architecture, fitted.net, prepared, {"checkpoint": origin_recipe}, tuple(measurements), details)


def checked_width(adoption: Adoption) -> int:
    """The number of logits K, found by running the model on one grey image of its size.

    Raises `UsageError` where the model does not take that size and `InputRefused` where its logits are not finite.
    """
    prepared = adoption.preprocessing
    size_px = list(prepared.size_px)
    pixels_NCHW = torch.full((1, prepared.num_channels, *prepared.size_px), 128.0)
    try:
        with torch.no_grad():
            logits_NK = Deployed(adoption.net, prepared).eval()(pixels_NCHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{adoption.architecture.key} does not take images of {size_px} px with {prepared.num_channels} channels: {first}. "
            "Set preprocessing (size_px, colour, mean, std) or kwargs of the architecture (image_size, in_chans, ...)."
        ) from error
    if not isinstance(logits_NK, torch.Tensor) or logits_NK.ndim != 2:
        raise UsageError(f"{adoption.architecture.key} does not return one tensor of logits (N, K): wrap it so that it does.")
    if not bool(torch.isfinite(logits_NK).all()):
        raise InputRefused(f"{adoption.architecture.key}: the logits of a grey image are not finite; the weights are damaged.")
    return logits_NK.shape[1]


def overridden(default: Preprocessing, overrides: Overrides) -> Preprocessing:
    """`default` with the settings that `overrides` gives (None keeps one). Raises `UsageError` for an unknown setting."""
    if isinstance(overrides, Preprocessing):
        return overrides
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in (overrides or {}).items() if v is not None}
    known = [f.name for f in fields(Preprocessing)]
    for key in values:
        if key not in known:
            raise unknown_name("preprocessing setting", key, known)
    return replace(default, **values)


def _agreement(
    legacy: str, held: Checkpoint, net: nn.Module, *, prepared: Preprocessing, native: Preprocessing
) -> tuple[Comparison, str]:
    """How the old model and `net` agree, and as what the old one was run. Raises `CheckFailed` where they do not."""
    if twin_file(legacy) is not None:
        return _twin_agreement(legacy, net, prepared)
    old = build_legacy(legacy, held.tensors)
    comparison = compare(old, net, prepared)
    if not comparison.explained:
        size_px, native_px = list(prepared.size_px), list(native.size_px)
        if size_px != native_px and compare(old, net, native).explained:
            raise CheckFailed(
                f"At {native_px} px the model and its legacy code {legacy} agree, at {size_px} px they do not (logits differ "
                f"by up to {comparison.max_abs_difference:.3g}): the old code is fixed to a size, often by its padding. Build "
                f"it for {size_px} px (arguments after the callable), adopt at {native_px} px, or leave legacy out."
            )
        raise _another_computation(f"code {legacy}", comparison)
    return comparison, "Python code"


def _twin_agreement(legacy: str, net: nn.Module, prepared: Preprocessing) -> tuple[Comparison, str]:
    """The reading of the old file under which it agrees; where none does, the nearest is named."""
    found: list[tuple[Comparison, str]] = []
    refusals = []
    for twin in open_twins(legacy, prepared):
        try:
            found.append((compare(twin, net, prepared), twin.description))
        except (InputRefused, UsageError) as refusal:
            refusals.append(refusal)
            continue
        if found[-1][0].explained:
            return found[-1]
    if not found:
        raise refusals[0]
    nearest, description = min(found, key=lambda pair: pair[0].max_abs_difference)
    raise _another_computation(f"file {legacy} ({description})", nearest)


def _another_computation(old: str, comparison: Comparison) -> CheckFailed:
    if comparison.max_abs_difference_float64 is not None:
        beyond = f"by {comparison.max_abs_difference_float64:.3g} in float64"
    else:
        beyond = f"{comparison.error_floors:.3g} times as much as float32 rounds"
    return CheckFailed(
        f"The model computes something else than its legacy {old}: over {comparison.num_images} images the logits differ by up "
        f"to {comparison.max_abs_difference:.3g} (largest logit {comparison.max_abs_logit:.3g}), and {beyond}, so it is not "
        "rounding. All tensors match: look for another epsilon, activation, padding or pooling, and set it in kwargs; for "
        "other images, set preprocessing."
    )


def _measured(comparison: Comparison) -> list[Measurement]:
    n = comparison.num_images
    found = [
        Measurement("legacy logits: largest difference", comparison.max_abs_difference, unit="logit", n=n),
        Measurement("legacy top-1 agreement", comparison.top1_agreement, n=n),
    ]
    if comparison.error_floors is not None:
        limit = Limit("<=", MAX_FLOORS, "what float32 rounds in the model itself, so many times over")
        name = "legacy logits: largest error against float64"
        return [*found, Measurement.against(name, comparison.error_floors, limit, unit="floors", n=n)]
    if comparison.max_abs_difference_float64 is None:
        limit = Limit("==", 0.0, "the same computation gives the same bits")
        return [Measurement.against(found[0].name, 0.0, limit, unit="logit", n=n), found[1]]
    limit = Limit("<=", comparison.rounding_limit, "what rounding alone leaves in float64")
    name, value = "legacy logits in float64: largest difference", comparison.max_abs_difference_float64
    return [*found, Measurement.against(name, value, limit, unit="logit", n=n)]
