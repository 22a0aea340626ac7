"""Names for bundles that move: `production`, `candidate`.

An alias is one small file with its whole history, replaced atomically under a lock: promoting appends an entry, rolling
back appends another, so nothing that was ever in service is forgotten.
"""

import dataclasses
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.atomic import locked, write_atomic
from toolkit.errors import InputRefused, UsageError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class AliasEntry:
    """One move of an alias: the digest it took, when (UTC), by which `action` (`promote` or `rollback`), and why."""

    digest: str
    time_utc: str
    action: str
    note: str = ""


class Aliases:
    """The aliases of a store, in the directory `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """All alias names, sorted."""
        return sorted(path.stem for path in self.root.glob("*.json"))

    def history(self, name: str) -> tuple[AliasEntry, ...]:
        """The moves of alias `name`, oldest first; empty when there is none. Raises `InputRefused` on a damaged file."""
        path = self._path(name)
        try:
            return tuple(AliasEntry(**entry) for entry in json.loads(path.read_bytes())["history"])
        except FileNotFoundError:
            return ()
        except (ValueError, TypeError, KeyError) as error:
            raise InputRefused(
                f"alias file {path} is damaged ({error}). Restore it from a copy, or delete it and promote again."
            ) from error

    def current(self, name: str) -> str | None:
        """The digest alias `name` stands for, or None."""
        history = self.history(name)
        return history[-1].digest if history else None

    def previous(self, name: str) -> str | None:
        """The digest that `rollback` would return alias `name` to, or None when there is nothing to go back to."""
        served = _stack(self.history(name))
        return served[-2] if len(served) > 1 else None

    def promote(self, name: str, digest: str, note: str = "") -> None:
        """Point alias `name` at `digest`; nothing changes when it stands for that already."""
        with locked(self.root / ".lock"):
            if self.current(name) == digest:
                return
            self._append(name, AliasEntry(digest, _now(), "promote", note))

    def rollback(self, name: str, note: str = "") -> str:
        """Point alias `name` back at what it stood for before its last promotion; returns that digest.

        Rolling back twice goes back two promotions. Raises `UsageError` when there is nothing to go back to.
        """
        with locked(self.root / ".lock"):
            served = _stack(self.history(name))
            if len(served) < 2:
                raise UsageError(
                    f"alias '{name}' has no earlier bundle to roll back to (toolkit log {name} shows its history)."
                )
            self._append(name, AliasEntry(served[-2], _now(), "rollback", note))
            return served[-2]

    def _append(self, name: str, entry: AliasEntry) -> None:
        history = [*self.history(name), entry]
        content = {"name": name, "history": [dataclasses.asdict(e) for e in history]}
        write_atomic(self._path(name), json.dumps(content, indent=1).encode())

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot be an alias: use letters, digits, '.', '_' and '-', a letter first, at most 64.")
        return self.root / f"{name}.json"


def _stack(history: tuple[AliasEntry, ...]) -> list[str]:
    served: list[str] = []
    for entry in history:
        if entry.action == "rollback":
            served.pop()
        else:
            served.append(entry.digest)
    return served


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
