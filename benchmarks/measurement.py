"""What a run measures, and how it is kept."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Better = Literal["higher", "lower"]
Mode = Literal["full", "quick"]


@dataclass(frozen=True, slots=True)
class Target:
    """What durable must reach: a limit in the unit of the metric, and factors over other systems of the same run."""

    limit: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    scenario: str
    system: str
    metric: str
    unit: str
    better: Better
    samples: list[float]
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None

    @classmethod
    def of(
        cls,
        scenario: str,
        system: str,
        metric: str,
        unit: str,
        better: Better,
        samples: Sequence[float],
        *,
        value: float | None = None,
        settings: Mapping[str, Any] | None = None,
        target: Target | None = None,
    ) -> Measurement:
        """The value is the median of the samples unless another is given."""
        return cls(
            scenario, system, metric, unit, better, list(samples),
            statistics.median(samples) if value is None else value,
            dict(settings or {}), target if system == "durable" else None,
        )  # fmt: skip

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scenario, self.system, self.metric


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmark: everything that is needed to judge its figures."""

    mode: Mode
    started_at: str
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    postgres: dict[str, str]
    payload: dict[str, Any]
    bystanders: dict[str, float]  # by scenario, the share of the processors that went to other processes
    measurements: list[Measurement]
    interrupted_in: str | None = None  # the scenario from which on measurements are missing

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        content = json.loads(path.read_text())
        if content.pop("format") != 1:
            raise SystemExit(f"{path} is of another format than this version of the benchmark reads.")
        measurements = [
            Measurement(**{**m, "target": Target(**m["target"]) if m["target"] else None})
            for m in content.pop("measurements")
        ]
        return cls(**content, measurements=measurements)


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of the samples does not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
