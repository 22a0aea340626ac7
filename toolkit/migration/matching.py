"""Which tensor of an old checkpoint is which tensor of a new implementation.

Three kinds of evidence, strongest first: the names are equal; the names are equal after a known renaming; the layers come
in the same order with the same shapes (`toolkit.migration.ordering`). What the evidence does not settle is listed as
ambiguous and nothing is loaded: a guess that is wrong gives a model that runs and is silently bad.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from toolkit.migration.layering import COUNTER, compact
from toolkit.migration.ordering import Ordering, align
from toolkit.migration.renaming import Renaming, renamings

LEFTOVERS = {
    "total_ops": "written by a FLOP counter",
    "total_params": "written by a FLOP counter",
    "relative_position_index": "an index table that the model computes itself",
    "attn_mask": "a mask that the model computes itself",
    "position_ids": "an index table that the model computes itself",
}

How = Literal["exact", "renamed", "order", "shape", "default", "left out", "missing", "unexpected", "reshaped", "ambiguous"]
LOADED: tuple[How, ...] = ("exact", "renamed", "order", "shape")


@dataclass(frozen=True)
class Row:
    """One line of the table: a tensor of the model, the checkpoint's tensor, how they were matched, both shapes, a remark."""

    target: str | None
    source: str | None
    how: How
    target_shape: tuple[int, ...] | None = None
    source_shape: tuple[int, ...] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Matching:
    """The table of a match. `complete` says whether every tensor of the model has its one source."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the checkpoint can be loaded: nothing missing, unexpected, reshaped or ambiguous."""
        return not (self.missing or self.unexpected or self.reshaped or self.ambiguous)

    @property
    def sources(self) -> dict[str, str]:
        """The checkpoint's tensor for each matched tensor of the model."""
        return {row.target: row.source for row in self.rows if row.how in LOADED and row.target and row.source}

    @property
    def missing(self) -> tuple[str, ...]:
        """Tensors of the model for which the checkpoint has none."""
        return tuple(row.target for row in self.rows if row.how == "missing" and row.target)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Tensors of the checkpoint for which the model has no place."""
        return tuple(row.source for row in self.rows if row.how == "unexpected" and row.source)

    @property
    def reshaped(self) -> tuple[Row, ...]:
        """Pairs that belong together and differ in shape."""
        return tuple(row for row in self.rows if row.how == "reshaped")

    @property
    def ambiguous(self) -> tuple[Row, ...]:
        """Tensors for which several partners are equally likely."""
        return tuple(row for row in self.rows if row.how == "ambiguous")

    @property
    def by_order_alone(self) -> tuple[str, ...]:
        """Tensors of the model that have equals in kind and shape, and were told apart by their order alone."""
        ordered = [row for row in self.rows if row.how == "order" and row.target and not _is_counter(row.target)]
        times = Counter((str(row.target).rpartition(".")[2], row.target_shape) for row in ordered)
        return tuple(str(row.target) for row in ordered if times[str(row.target).rpartition(".")[2], row.target_shape] > 1)

    def counts(self) -> dict[str, int]:
        """How many rows of each kind."""
        return dict(Counter(row.how for row in self.rows))

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values, for a report."""
        return [
            {
                "model": row.target,
                "checkpoint": row.source,
                "how": row.how,
                "model_shape": None if row.target_shape is None else list(row.target_shape),
                "checkpoint_shape": None if row.source_shape is None else list(row.source_shape),
                "remark": row.remark,
            }
            for row in self.rows
        ]


def match(source: Mapping[str, Tensor], net: nn.Module, *, training_only: Sequence[str] = ()) -> Matching:
    """Match the tensors of a checkpoint to the state of `net`, which stays as it is.

    `training_only` lists beginnings of names that the checkpoint may hold and the model need not (auxiliary heads).
    """
    target = net.state_dict()
    junk = {name: _is_junk(name, training_only) for name in source}
    useful = {name: tensor for name, tensor in source.items() if not junk[name] or name in target}
    left_out = [_source_row(name, source, "left out", junk[name]) for name in source if name not in useful]
    renaming, rivals = _best_renaming(list(useful), list(target))
    if rivals:
        rows = [_source_row(name, useful, "ambiguous", f"the model fits under {' and '.join(rivals)}") for name in useful]
        return Matching((*rows, *left_out), (f"Several copies of the model lie in the file: under {' and '.join(rivals)}.",))
    pairs = _named_pairs(useful, target, renaming)
    rows = _named_rows(useful, target, pairs, renaming)
    rest_source = [name for name in useful if name not in pairs.values()]
    rest_target = [name for name in target if name not in pairs]
    if not any(not _is_counter(name) for name in rest_target) and renaming.strip:
        outside = [name for name in rest_source if not name.startswith(renaming.strip)]
        left_out += [_source_row(name, useful, "left out", f"outside '{renaming.strip}'") for name in outside]
        rest_source = [name for name in rest_source if name not in outside]
    ordering = align(useful, target, pairs) if rest_source and rest_target else Ordering(missing=rest_target, extra=rest_source)
    rows += _ordered_rows(useful, target, ordering)
    place = {name: index for index, name in enumerate(target)}
    rows.sort(key=lambda row: place.get(row.target or "", len(place)))
    notes = (f"names taken {renaming}",) if pairs and renaming != Renaming() else ()
    return Matching((*rows, *left_out), notes)


def _best_renaming(sources: list[str], targets: list[str]) -> tuple[Renaming, list[str]]:
    """The renaming that makes most names meet (the plainest of equals), and the rival prefixes where several fit fully."""
    needed = {name for name in targets if not _is_counter(name)}
    best, most, full = Renaming(), 0, {}
    for renaming in renamings(sources, targets):
        hits = len(needed & {renaming(name) for name in sources})
        if hits > most:
            best, most = renaming, hits
        if hits == len(needed) and hits:
            full.setdefault(renaming.strip, renaming)
    if "" in full or len(full) < 2:
        return best, []
    return best, [f"'{strip}'" for strip in full]


def _named_pairs(source: Mapping[str, Tensor], target: Mapping[str, Tensor], renaming: Renaming) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name in source:
        renamed = renaming(name)
        if renamed is not None and renamed in target and renamed not in pairs:
            pairs[renamed] = name
    return pairs


def _named_rows(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], pairs: Mapping[str, str], renaming: Renaming
) -> list[Row]:
    rows = []
    for name, origin in pairs.items():
        how: How = "exact" if name == origin else "renamed"
        if compact(source[origin].shape) != compact(target[name].shape):
            how = "reshaped"
        rows.append(
            Row(
                name,
                origin,
                how,
                tuple(target[name].shape),
                tuple(source[origin].shape),
                "" if name == origin else str(renaming),
            )
        )
    return rows


def _ordered_rows(source: Mapping[str, Tensor], target: Mapping[str, Tensor], ordering: Ordering) -> list[Row]:
    rows = [
        Row(pair.target, pair.source, pair.how, tuple(target[pair.target].shape), tuple(source[pair.source].shape))
        for pair in ordering.pairs
    ]
    for name in ordering.missing:
        counter = _is_counter(name)
        remark = "not in checkpoints of old torch versions; starts at 0" if counter else ""
        rows.append(Row(name, None, "default" if counter else "missing", tuple(target[name].shape), None, remark))
    rows += [_source_row(name, source, "left out" if _is_counter(name) else "unexpected", "") for name in ordering.extra]
    for group in ordering.ambiguous:
        remark = f"could be any of {', '.join(group.targets[:4])}{', ...' if len(group.targets) > 4 else ''}: {group.reason}"
        rows += [_source_row(name, source, "ambiguous", remark) for name in group.sources]
    return rows


def _source_row(name: str, source: Mapping[str, Tensor], how: How, remark: str) -> Row:
    return Row(None, name, how, None, tuple(source[name].shape), remark)


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _is_junk(name: str, training_only: Sequence[str]) -> str:
    reason = LEFTOVERS.get(name.rpartition(".")[2], "")
    return "auxiliary head, for training alone" if name.startswith(tuple(training_only)) else reason
