"""A run as a table with a chart, and two runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import chart, systems
from benchmarks.measurement import Measurement, Run, percentile

# From here on a run says how much other processes had of the processors.
DISTURBED = 0.05
Rows = dict[tuple[str, str], dict[str, Measurement]]


def render(run: Run) -> str:
    return "\n".join([*_figures(run), "", *_conditions(run), ""])


def files(run: Run, page: Path, heading: Sequence[str] = ()) -> dict[Path, str]:
    """The chart and the table, as the text of a page and of the image that it shows."""
    image = page.with_suffix(".svg")
    return {
        image: chart.render(run),
        page: "\n".join([*heading, f"![Throughput]({image.name})", "", render(run)]),
    }


def compare(old: Run, new: Run, noise: float) -> tuple[str, bool]:
    """A table of the changes, and whether any of durable's figures got worse by more than the noise.

    The noise of a figure is the largest of the given share, the spread of its repeats, and, where it was measured only
    once, the typical spread of the rates and costs that were repeated.
    """
    before = {m.key: m for m in old.measurements}
    usual = max(_usual_spread(old), _usual_spread(new))
    lines = [
        f"| scenario | metric | system | {old.started_at} | {new.started_at} | change | noise | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    worse_found = False
    for m in new.measurements:
        if m.key not in before:
            continue
        was = before[m.key]
        change = m.value / was.value - 1 if was.value else 0.0
        gain = change if m.better == "higher" else -change
        spreads = [spread for spread in (_spread(was), _spread(m)) if spread is not None]
        limit = max(noise, *(spreads or [usual]))
        verdict = "worse" if gain < -limit else "better" if gain > limit else ""
        worse_found |= verdict == "worse" and m.system == "durable"
        lines.append(
            f"| {m.scenario} | {_metric(m)} | {systems.TITLES[m.system]} | {_number(was.value)} | {_number(m.value)}"
            f" | {change:+.0%} | {limit:.0%} | {verdict} |"
        )
    if old.mode != new.mode or old.machine["cpu"] != new.machine["cpu"] or old.machine["cpus"] != new.machine["cpus"]:
        lines += ["", "The two runs differ in mode or machine: the changes say little."]
    for side, run, other in (("before", old, new), ("after", new, old)):
        known = {m.key for m in other.measurements}
        if alone := [m for m in run.measurements if m.key not in known]:
            names = ", ".join(dict.fromkeys(f"{m.scenario} ({systems.TITLES[m.system]})" for m in alone))
            lines += ["", f"Measured only {side}, in whole or in part: {names}."]
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
    chosen = {m.system: m for m in reversed(run.measurements)}
    yield (
        "Settings: "
        + "; ".join(
            f"{systems.TITLES[name]} in {chosen[name].scenario}: "
            + ", ".join(f"{setting} = {value}" for setting, value in chosen[name].settings.items())
            for name in systems.NAMES
            if name in chosen
        )
        + "."
    )
    if run.interrupted_in is not None:
        yield f"**Interrupted** in {run.interrupted_in}: what follows is missing."
    disturbed = {name: share for name, share in run.bystanders.items() if share >= DISTURBED}
    if disturbed:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in disturbed.items())
        yield f"**Disturbed**: other processes had a share of the processors: {shares}."
    yield "In brackets: how many times better durable is."


def _metric(m: Measurement) -> str:
    return f"{m.metric}, {m.unit}" if m.unit else m.metric


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _spread(m: Measurement) -> float | None:
    """Of the repeats of a figure. Many samples are a distribution, whose width is not noise."""
    if not 2 <= len(m.samples) <= 10 or not m.value:
        return None
    return (max(m.samples) - min(m.samples)) / abs(m.value)


def _usual_spread(run: Run) -> float:
    """What three quarters of the repeated figures stay within."""
    spreads = [spread for m in run.measurements if (spread := _spread(m)) is not None]
    return percentile(spreads, 0.75) if spreads else 0.0
