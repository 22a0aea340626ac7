"""From what a checkpoint file holds to the state dict in it: wrappers opened, prefixes peeled off.

Training scripts wrap weights in their own way (`{"model": ..., "optimizer": ...}`), and wrappers of modules leave prefixes
on the names (`module.` of data parallelism, `_orig_mod.` of compilation, `model.` of Lightning modules). The part with the
weights is found by what it holds, names to tensors, so wrappers nobody listed work too. Where a file holds several, such as
the trained weights and their moving average, nothing is guessed: the user chooses.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from toolkit.errors import InputRefused, UsageError, unknown_name

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
INNER = "_orig_mod."
NOT_WEIGHTS = ("optim", "sched", "lr_", "scaler", "loops", "callbacks", "rng", "random")
MAX_DEPTH = 4


def unwrap(content: Any, *, entry: str, origin: str) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The state dict in `content`, the entry it lay in (parts joined by `/`; empty at the top), and notes for people.

    `entry` names the part, or a beginning of the tensor names in it. Raises `InputRefused` where there are no weights or
    several, `UsageError` for an entry that is not there; `origin` names the file.
    """
    if isinstance(content, Tensor):
        raise InputRefused(f"{origin} holds one tensor, not the named weights of a model.")
    found = dict(_state_dicts(content, ()))
    largest = max((len(tensors) for tensors in found.values()), default=0)
    if not largest:
        raise InputRefused(f"{origin} holds no named tensors: it is not a checkpoint of a model.")
    if entry:
        name, tensors, notes = _chosen(found, entry, origin)
    else:
        found = {name: tensors for name, tensors in found.items() if 2 * len(tensors) >= largest}
        if len(found) > 1:
            raise InputRefused(
                f"{origin} holds several sets of weights: {', '.join(sorted(found))}. Choose one: checkpoint=<file>#<name>."
            )
        (name, tensors), notes = next(iter(found.items())), ()
    if name:
        notes = (f"weights taken from the entry '{name}'", *notes)
    tensors, peeled = _peeled(tensors)
    return tensors, name, (*notes, *peeled)


def _state_dicts(content: Any, path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors inside `content`, by its path."""
    if not isinstance(content, Mapping) or len(path) > MAX_DEPTH:
        return
    tensors = {k: _plain(v) for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if any(tensor.ndim for tensor in tensors.values()):
        yield "/".join(path), tensors
    for key, value in content.items():
        if isinstance(key, str) and not key.lower().startswith(NOT_WEIGHTS):
            yield from _state_dicts(value, (*path, key))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach() if isinstance(tensor, nn.Parameter) or tensor.requires_grad else tensor


def _chosen(found: Mapping[str, dict[str, Tensor]], entry: str, origin: str) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    if entry in found:
        return entry, found[entry], ()
    for name, tensors in found.items():
        beginning = entry.removeprefix(f"{name}/").rstrip(".") + "."
        inside = {key.removeprefix(beginning): tensor for key, tensor in tensors.items() if key.startswith(beginning)}
        if inside:
            return name, inside, (f"{len(inside)} of {len(tensors)} tensors taken, whose names begin with '{beginning}'",)
    raise UsageError(f"{origin}: {unknown_name('entry', entry, [name for name in found if name])}")


def _peeled(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`tensors` without the prefixes that all names share, and without compilation's inner ones."""
    notes = []
    inner = {name.replace(INNER, ""): tensor for name, tensor in tensors.items()}
    if len(inner) == len(tensors) and any(INNER in name for name in tensors):
        tensors = inner
        notes.append(f"'{INNER}' removed from the names")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"prefix '{prefix}' removed from the names")
    return tensors, tuple(notes)
