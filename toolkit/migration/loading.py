"""Loading a matched checkpoint: all of it, exactly, or not at all."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.errors import InputRefused
from toolkit.migration.matching import Matching

MAX_NAMED = 8


def load_matched(net: nn.Module, source: Mapping[str, Tensor], matching: Matching, *, origin: str) -> tuple[str, ...]:
    """Load the matched tensors into `net`, in the types of its own; returns notes on types that were converted.

    Raises `InputRefused`, naming `origin` and what is missing, unexpected, reshaped or ambiguous, when the match is not
    complete, and for weights that hold NaN; `net` is then as it was.
    """
    if not matching.complete:
        raise InputRefused(misfit(matching, origin))
    pairs = matching.sources
    broken = [origin_name for origin_name in pairs.values() if bool(torch.isnan(source[origin_name]).any())]
    if broken:
        raise InputRefused(
            f"{origin}: {len(broken)} tensors hold NaN ({_some(broken)}). The training that wrote it had diverged."
        )
    state = net.state_dict()
    notes = _conversions(state, source, pairs, origin)
    state.update({target: source[name].to(state[target].dtype).reshape(state[target].shape) for target, name in pairs.items()})
    net.load_state_dict(state, strict=True)
    return notes


def misfit(matching: Matching, origin: str) -> str:
    """One message that lists what keeps a checkpoint from fitting."""
    reshaped = [
        f"{row.source} {list(row.source_shape or ())} -> {row.target} {list(row.target_shape or ())}"
        for row in matching.reshaped
    ]
    ambiguous = [f"{row.source} ({row.remark})" for row in matching.ambiguous]
    parts = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (
            ("missing", matching.missing),
            ("unexpected", matching.unexpected),
            ("reshaped", reshaped),
            ("ambiguous", ambiguous),
        )
        if names
    ]
    way_out = (
        "Nothing is guessed: rename these tensors in the checkpoint to the model's names."
        if matching.ambiguous and not matching.missing
        else "Choose the architecture it was made for, or set kwargs (num_classes, ...) as it was built."
    )
    return f"{origin} does not fit the architecture: {'; '.join(parts)}. {way_out}"


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f", and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _conversions(
    state: Mapping[str, Tensor], source: Mapping[str, Tensor], pairs: Mapping[str, str], origin: str
) -> tuple[str, ...]:
    counts: dict[tuple[torch.dtype, torch.dtype], int] = {}
    for target, name in pairs.items():
        kinds = source[name].dtype, state[target].dtype
        if kinds[0].is_floating_point != kinds[1].is_floating_point:
            raise InputRefused(f"{origin}: {name} is {_short(kinds[0])}, the model's {target} is {_short(kinds[1])}.")
        if kinds[0] != kinds[1]:
            counts[kinds] = counts.get(kinds, 0) + 1
    return tuple(
        f"{count} tensors converted from {_short(old)} to {_short(new)}"
        + (" (exact)" if torch.promote_types(old, new) == new else " (rounded)")
        for (old, new), count in counts.items()
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
