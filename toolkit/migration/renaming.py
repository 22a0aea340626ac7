"""Names one model may have in two files: prefixes of wrapping modules, and spellings that changed between versions.

A renaming is tried as a whole and kept only if it makes names meet, so a rule that does not apply costs nothing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PREFIX_DEPTH = 3

SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_var(iance)?$", ".running_var"),
    (r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.", r"\1\2."),  # torchvision DenseNet before 0.3
    (r"\.mlp\.linear_1\.", ".mlp.0."),  # torchvision ViT before 0.13
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)


@dataclass(frozen=True)
class Renaming:
    """Take the names that begin with `strip`, without it, put `add` before them, then apply the spellings if `respell`."""

    strip: str = ""
    add: str = ""
    respell: bool = False

    def __call__(self, name: str) -> str | None:
        """The new name, or None for a name outside `strip`."""
        if not name.startswith(self.strip):
            return None
        name = self.add + name[len(self.strip) :]
        for pattern, replacement in SPELLINGS if self.respell else ():
            name = re.sub(pattern, replacement, name)
        return name

    def __str__(self) -> str:
        parts = [f"without '{self.strip}'"] if self.strip else []
        parts += [f"with '{self.add}' before"] if self.add else []
        return ", ".join([*parts, *(["respelled"] if self.respell else [])]) or "as they are"


def renamings(sources: Sequence[str], targets: Sequence[str]) -> Iterator[Renaming]:
    """The renamings worth trying, the plain one first."""
    strips = ["", *sorted(_prefixes(sources))]
    adds = ["", *sorted(_common_prefixes(targets), key=len)]
    for respell in (False, True):
        for strip in strips:
            for add in adds:
                yield Renaming(strip, add, respell)


def _prefixes(names: Sequence[str]) -> set[str]:
    found = set()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:depth]) + "." for depth in range(1, min(MAX_PREFIX_DEPTH, len(parts) - 1) + 1))
    return found


def _common_prefixes(names: Sequence[str]) -> set[str]:
    if not names:
        return set()
    return {prefix for prefix in _prefixes(names[:1]) if all(name.startswith(prefix) for name in names)}
