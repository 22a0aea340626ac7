"""Stage `ensemble`.

What it promises is checked before it returns: the bundle, restored from disk, must answer as its members' separate answers
averaged in float64 do. From there an ensemble is a bundle like any other.

Shapes: N batch, C channels, H height, W width, K classes.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.bundle import Bundle, Manifest, Measurement, Preprocessing, Report, Store, environment, lineage, recipe_yaml
from toolkit.errors import CheckFailed, UsageError
from toolkit.models import Deployed, pixel_contract, require_changeable, restore
from toolkit.models.ensemble import Average, Member, architecture_of, joint_plan, joint_preprocessing
from toolkit.models.resizing import Resize

TOLERANCE = 1e-9  # both sides are computed in float64
NUM_IMAGES = 4

log = logging.getLogger(__name__)


def ensemble(bundles: Sequence[Bundle], *, store: Store, weights: Sequence[float] = (), average: Average = "logits") -> Bundle:
    """Make one bundle from several: the weighted average of their logits or of their probabilities.

    `weights` (default: equal) are scaled to sum to 1. The ensemble takes images at the largest member's size; each member
    resizes and normalises inside, keeps its own pruning plan, and may order the same labels differently (its logits are then
    put into the first one's order). The report `ensemble` names the members and the largest difference from their separate
    answers. Members must have the same labels, colour mode and crop.
    """
    shares = _shares(bundles, weights)
    labels = bundles[0].manifest.labels
    members = [
        Member(b.manifest.architecture, share, b.manifest.preprocessing, _order(b, bundles[0]))
        for b, share in zip(bundles, shares, strict=True)
    ]
    preprocessing = joint_preprocessing([member.preprocessing for member in members])
    architecture = architecture_of(members, average=average, size_px=preprocessing.size_px)
    recipe = {"weights": shares, "average": average}
    made = lineage("ensemble", parents=[b.digest for b in bundles], recipe=recipe)
    found = store.find(stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=None)
    if found is not None:
        log.info("Found bundle %s, made before from the same members.", found.short)
        return found
    manifest = Manifest(
        architecture=architecture,
        labels=labels,
        preprocessing=preprocessing,
        contract=pixel_contract(preprocessing, len(labels)),
        lineage=made,
        plan=joint_plan([b.manifest.plan for b in bundles]),
    )
    tensors = {f"members.{i}.{name}": tensor for i, b in enumerate(bundles) for name, tensor in b.weights().items()}
    child = store.add(manifest, weights=tensors)
    report = _report(child, bundles, members, average)
    store.add_report(report)
    if report.verdict != "pass":
        raise CheckFailed(
            f"Ensemble {child.short} differs from its members' average by {report.value('max_difference'):.3g}: do not use it."
        )
    log.info("Bundle %s: %d members, average of %s.", child.short, len(bundles), average)
    return child


def _shares(bundles: Sequence[Bundle], weights: Sequence[float]) -> list[float]:
    """The members' weights, scaled to sum to 1, after checking that there are members to weigh."""
    if len(bundles) < 2:
        raise UsageError(f"an ensemble needs at least 2 bundles; got {len(bundles)}: bundles=[<reference>,<reference>].")
    digests = [b.digest for b in bundles]
    twice = [b.short for b in bundles if digests.count(b.digest) > 1]
    if twice:
        raise UsageError(f"bundle {twice[0]} is given more than once: give it once, with a larger weight in weights=[...].")
    for b in bundles:
        require_changeable(b, "a member of an ensemble")
    given = [float(weight) for weight in weights] or [1.0] * len(bundles)
    if len(given) != len(bundles):
        raise UsageError(f"weights has {len(given)} values for {len(bundles)} bundles: give one for each, or none.")
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise UsageError(f"weights is {given}; every weight must be positive. Leave a member out instead of weighing it 0.")
    return [weight / math.fsum(given) for weight in given]


def _order(member: Bundle, first: Bundle) -> tuple[int, ...]:
    """For each label of `first` its place among those of `member`. Raises `UsageError` where the two sets differ."""
    own, wanted = member.manifest.labels, first.manifest.labels
    if set(own) != set(wanted) or len(own) != len(wanted):
        sides = ((first, [x for x in wanted if x not in own]), (member, [x for x in own if x not in wanted]))
        said = "; ".join(f"only {b.short} has {', '.join(only[:5])}" for b, only in sides if only) or "some repeat"
        raise UsageError(f"the members' labels differ: {said}. Fine-tune them on data with the same labels first.")
    order = tuple(own.index(label) for label in wanted)
    if own != wanted:
        log.warning(
            "Bundle %s orders the labels differently; its logits are put into the order of %s.", member.short, first.short
        )
    return order


@torch.no_grad()
def _report(child: Bundle, bundles: Sequence[Bundle], members: Sequence[Member], average: Average) -> Report:
    """Who the members are, and how far the restored ensemble is from their separate answers on random pixels."""
    preprocessing = child.manifest.preprocessing
    shape = (NUM_IMAGES, preprocessing.num_channels, *preprocessing.size_px)
    images_NCHW = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).double()
    joint_NK = Deployed(restore(child), preprocessing).double()(images_NCHW)
    expected_NK = torch.zeros_like(joint_NK)
    details = []
    for bundle, member in zip(bundles, members, strict=True):
        logits_NK = _alone(bundle, images_NCHW, preprocessing)[:, list(member.order)]
        expected_NK += member.weight * (logits_NK if average == "logits" else logits_NK.softmax(1))
        details.append(
            {
                "digest": bundle.digest,
                "weight": member.weight,
                "size_px": list(member.preprocessing.size_px),
                "resized": tuple(member.preprocessing.size_px) != tuple(preprocessing.size_px),
                "labels_reordered": bundle.manifest.labels != child.manifest.labels,
            }
        )
    answer_NK = joint_NK if average == "logits" else joint_NK.exp()
    difference = float((answer_NK - expected_NK).abs().max() / expected_NK.abs().max().clamp(min=1.0))
    verdict = "pass" if difference <= TOLERANCE else "fail"
    measurements = (Measurement("num_members", len(bundles)), Measurement("max_difference", difference))
    return Report("ensemble", (child.digest,), verdict, measurements, {"average": average, "members": details}, environment())


def _alone(bundle: Bundle, images_NCHW: Tensor, joint: Preprocessing) -> Tensor:
    """The logits of one member outside the ensemble, in its own label order, for pixels at the ensemble's size."""
    own = bundle.manifest.preprocessing
    resized = images_NCHW if own.size_px == joint.size_px else Resize(joint.size_px, own.size_px).double()(images_NCHW)
    return Deployed(restore(bundle), own).double()(resized)
