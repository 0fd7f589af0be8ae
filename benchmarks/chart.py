"""The throughput of a run as bars, in SVG that follows the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks import systems
from benchmarks.measurement import Measurement, Run

# Scenario, metric, and what stands above the bars.
PANELS = (
    ("one-step", "workflows", "One-step workflows, per second"),
    ("ten-steps", "steps", "Steps of ten-step workflows, per second"),
    ("plain-queue", "workflows", "Workflows without a step, per second"),
    ("sql-queue", "workflows", "The same by SQL alone, one connection, per second"),
)
COLUMNS = 2
WIDTH, GAP = 400, 24  # of a panel, and around it
LABEL, VALUE = 110, 60  # the room for names and figures
BAR, PITCH, HEADING = 16, 24, 32

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.heading { font-weight: 600; font-size: 13px }
.name { text-anchor: end }
.bar { fill: #8c959f }
.durable { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .bar { fill: #6e7681 }
  .durable { fill: #4493f8 }
}"""


def render(run: Run) -> str:
    """One panel for each of the scenarios that the run has."""
    panels = [(title, bars) for scenario, metric, title in PANELS if (bars := _bars(run, scenario, metric))]
    lines: list[str] = []
    y = 0
    for start in range(0, len(panels), COLUMNS):
        row = panels[start : start + COLUMNS]
        for column, (title, bars) in enumerate(row):
            lines += _panel(GAP + column * (WIDTH + GAP), y, title, bars)
        y += HEADING + PITCH * max(len(bars) for _, bars in row) + GAP
    width = GAP + COLUMNS * (WIDTH + GAP)
    described = "; ".join(f"{title}: {_in_words(bars)}" for title, bars in panels)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">',
            f"<title>{escape(described)}</title>",
            f"<style>{STYLE}\n</style>",
            *lines,
            "</svg>",
            "",
        ]
    )


def _bars(run: Run, scenario: str, metric: str) -> list[Measurement]:
    found = [m for m in run.measurements if (m.scenario, m.metric) == (scenario, metric)]
    return sorted(found, key=lambda m: systems.NAMES.index(m.system))


def _panel(x: int, y: int, title: str, bars: Sequence[Measurement]) -> Iterator[str]:
    yield f'<text class="heading" x="{x}" y="{y + 20}">{escape(title)}</text>'
    longest = max(m.value for m in bars)
    for n, m in enumerate(bars):
        top = y + HEADING + n * PITCH
        length = max(1.0, (WIDTH - LABEL - VALUE) * m.value / longest)
        middle = top + BAR / 2 + 4
        kind = "bar durable" if m.system == "durable" else "bar"
        yield f'<text class="name" x="{x + LABEL - 8}" y="{middle:g}">{escape(systems.TITLES[m.system])}</text>'
        yield f'<rect class="{kind}" x="{x + LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        yield f'<text x="{x + LABEL + length + 6:.1f}" y="{middle:g}">{m.value:,.0f}</text>'


def _in_words(bars: Sequence[Measurement]) -> str:
    return ", ".join(f"{systems.TITLES[m.system]} {m.value:,.0f}" for m in bars)
