"""A run as a table, and two runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks import systems
from benchmarks.measurement import Measurement, Run

# From here on a run says how much other processes had of the processors.
DISTURBED = 0.05
Rows = dict[tuple[str, str], dict[str, Measurement]]


def render(run: Run) -> str:
    return "\n".join([*_figures(run), "", *_conditions(run), ""])


def compare(old: Run, new: Run, noise: float) -> tuple[str, bool]:
    """A table of the changes, and whether any of durable's figures got worse by more than the noise.

    The noise of a figure is the given share, or the spread of the samples of its repeats where that is larger.
    """
    before = {m.key: m for m in old.measurements}
    lines = [
        f"| scenario | metric | system | {old.started_at} | {new.started_at} | change | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    worse_found = False
    for m in new.measurements:
        if m.key not in before:
            continue
        was = before[m.key]
        change = m.value / was.value - 1 if was.value else 0.0
        gain = change if m.better == "higher" else -change
        limit = max(noise, _spread(was), _spread(m))
        verdict = "worse" if gain < -limit else "better" if gain > limit else ""
        worse_found |= verdict == "worse" and m.system == "durable"
        lines.append(
            f"| {m.scenario} | {_metric(m)} | {systems.TITLES[m.system]} | {_number(was.value)} | {_number(m.value)}"
            f" | {change:+.0%} | {verdict} |"
        )
    if old.mode != new.mode or old.machine["cpu"] != new.machine["cpu"] or old.machine["cpus"] != new.machine["cpus"]:
        lines += ["", "The two runs differ in mode or machine: the changes say little."]
    return "\n".join([*lines, ""]), worse_found


def _figures(run: Run) -> Iterator[str]:
    rows: Rows = {}
    for m in run.measurements:
        rows.setdefault((m.scenario, m.metric), {})[m.system] = m
    names = [name for name in systems.NAMES if any(name in row for row in rows.values())]
    yield "| scenario | metric | " + " | ".join(systems.TITLES[name] for name in names) + " | target | |"
    yield "|---|---|" + "---:|" * len(names) + "---|---|"
    for row in rows.values():
        first = next(iter(row.values()))
        cells = [_cell(row, name) for name in names]
        yield f"| {first.scenario} | {_metric(first)} | {' | '.join(cells)} | {_target(row)} | {_verdict(row)} |"


def _cell(row: dict[str, Measurement], name: str) -> str:
    if name not in row:
        return ""
    m, ours = row[name], row.get("durable")
    if ours is None or name == "durable" or not m.value or not ours.value:
        return _number(m.value)
    return f"{_number(m.value)} ({_advantage(ours, m):.1f}×)"


def _advantage(ours: Measurement, theirs: Measurement) -> float:
    """How many times better ours is; below 1 when theirs is."""
    return ours.value / theirs.value if ours.better == "higher" else theirs.value / ours.value


def _target(row: dict[str, Measurement]) -> str:
    ours = row.get("durable")
    if ours is None or ours.target is None:
        return ""
    sign = "≥" if ours.better == "higher" else "≤"
    parts = [f"{sign} {_number(ours.target.limit)}"] if ours.target.limit is not None else []
    return ", ".join(parts + [f"{factor:g}× {systems.TITLES[name]}" for name, factor in ours.target.ratios.items()])


def _verdict(row: dict[str, Measurement]) -> str:
    ours = row.get("durable")
    if ours is None or ours.target is None:
        return ""
    checks = [_advantage(ours, row[name]) >= factor for name, factor in ours.target.ratios.items() if name in row]
    if ours.target.limit is not None:
        checks.append(ours.value >= ours.target.limit if ours.better == "higher" else ours.value <= ours.target.limit)
    # A run without the other systems says nothing of them.
    return "" if not checks else "met" if all(checks) else "missed"


def _conditions(run: Run) -> Iterable[str]:
    machine, versions = run.machine, run.versions
    yield (
        f"{run.mode} run of {run.started_at}, {run.seconds:.0f} s, on {machine['cpus']} × {machine['cpu']}, "
        f"{machine['memory_gb']} GB, {machine['os']}, {machine['filesystem']} (8 kB write and fdatasync: "
        f"{machine['fdatasync_us']} µs), Python {machine['python']}; load before the run {machine['load_average']}."
    )
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    yield "Postgres: " + ", ".join(f"{name} = {value}" for name, value in run.postgres.items()) + "."
    disturbed = {name: share for name, share in run.bystanders.items() if share >= DISTURBED}
    if disturbed:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in disturbed.items())
        yield f"**Disturbed**: other processes had a share of the processors: {shares}."
    yield "In brackets: how many times better durable is."


def _metric(m: Measurement) -> str:
    return f"{m.metric}, {m.unit}" if m.unit else m.metric


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _spread(m: Measurement) -> float:
    """Of the repeats of a figure. Many samples are a distribution, whose width is not noise."""
    if not 2 <= len(m.samples) <= 10 or not m.value:
        return 0.0
    return (max(m.samples) - min(m.samples)) / abs(m.value)
