"""What a check found, as data: measurements with units, intervals and limits, and a three-valued verdict.

A report lies beside the bundles it speaks of, outside their digests. Host, device, time and versions stand in
`environment`, never in a manifest.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from toolkit.bundle.manifest import from_plain
from toolkit.errors import InputRefused

Verdict = Literal["pass", "fail", "undecided"]

PACKAGES = ("torch", "torchvision", "timm", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


@dataclass(frozen=True)
class Limit:
    """A bound a measurement must keep: `>=`, `<=` or `==` a value. `reason` says why it was chosen."""

    relation: Literal[">=", "<=", "=="]
    value: float
    reason: str = ""

    def holds(self, value: float) -> bool:
        """Whether `value` keeps the bound; a NaN never does."""
        if self.relation == ">=":
            return value >= self.value
        return value <= self.value if self.relation == "<=" else value == self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


@dataclass(frozen=True)
class Measurement:
    """One number: `unit` is `1` for shares and scores, `interval` its 95% confidence interval, `n` the sample count.

    `passed` is None where there is no limit, or where the number cannot be decided against it.
    """

    name: str
    value: float | None
    unit: str = "1"
    interval: tuple[float, float] | None = None
    n: int | None = None
    limit: Limit | None = None
    passed: bool | None = None

    @classmethod
    def against(cls, name: str, value: float, limit: Limit | None, **rest: Any) -> "Measurement":
        """A measurement judged by its point value against `limit` (None: not judged)."""
        return cls(name, value, limit=limit, passed=None if limit is None else limit.holds(value), **rest)


@dataclass(frozen=True)
class Report:
    """The result of one check over `subjects` (bundle digests, the one under test first)."""

    check: str
    subjects: tuple[str, ...]
    verdict: Verdict
    measurements: tuple[Measurement, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """The value of the measurement `name`. Raises `KeyError` when the report has none."""
        for measurement in self.measurements:
            if measurement.name == name and measurement.value is not None:
                return measurement.value
        raise KeyError(f"report '{self.check}' has no measurement '{name}'")

    def to_json(self) -> bytes:
        """Indented JSON; a NaN or infinite number is an error of the check that made it (`ValueError`)."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes, origin: str) -> "Report":
        """Read a report; `origin` names it in errors. Raises `InputRefused` when it is not one."""
        try:
            return from_plain(cls, json.loads(content))
        except (ValueError, TypeError) as error:
            raise InputRefused(f"{origin} is not a report of this version: {error}. Run the check again.") from error


def verdict_of(measurements: Sequence[Measurement]) -> Verdict:
    """`fail` if any limit is broken, else `undecided` if any limited measurement is undecided, else `pass`."""
    judged = [m.passed for m in measurements if m.limit is not None]
    if False in judged:
        return "fail"
    return "undecided" if None in judged else "pass"


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide what a model computes."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def environment() -> dict[str, Any]:
    """Where and when a check ran: time (UTC), machine, processor count, Python and package versions."""
    return {
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "machine": platform.machine(),
        "processor": _processor_name(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": package_versions(),
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
