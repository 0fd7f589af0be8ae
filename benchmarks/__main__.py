"""The entry point: python -m benchmarks run | render | publish | compare."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import machine, report, systems
from benchmarks.bench import Bench
from benchmarks.cluster import Cluster, find_postgres
from benchmarks.measurement import Measurement, Mode, Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.workload import ORDER, charge

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEADING = (
    "# Benchmarks",
    "",
    "All of these systems ran on one Postgres in one run, each with the settings that made it quickest; Restate has a",
    "storage of its own. What was lost is shown like what was won. How each figure is measured stands in",
    "[benchmarks/](../benchmarks/README.md), and every sample in",
    "[`{source}`](../benchmarks/results/{source}), from which this page is made.",
    "",
)
SCENARIO_NAMES = tuple(scenario.name for scenario in SCENARIOS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="measure, print the table, and keep the results")
    run.add_argument("--quick", action="store_true", help="fewer samples and no repeats: a look, not a figure to quote")
    run.add_argument(
        "--scenarios", type=_some_of(SCENARIO_NAMES), default=SCENARIO_NAMES, help=", ".join(SCENARIO_NAMES)
    )
    run.add_argument("--systems", type=_some_of(systems.NAMES), default=systems.NAMES, help=", ".join(systems.NAMES))
    run.add_argument("--postgres-bin", type=Path, default=None, help="the directory of initdb and postgres")
    run.add_argument("--output", type=Path, default=None, help="the file of the results, instead of one in results/")
    run.set_defaults(command=_run)

    render = commands.add_parser("render", help="write the table and the chart of a result file beside it")
    render.add_argument("file", type=Path)
    render.set_defaults(command=_render)

    publish = commands.add_parser("publish", help="write them into docs/, where the README shows the chart")
    publish.add_argument("file", type=Path)
    publish.add_argument("--check", action="store_true", help="only say whether they are what the file says")
    publish.set_defaults(command=_publish)

    compare = commands.add_parser("compare", help="print what changed; exit status 1 when durable became slower")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.add_argument("--noise", type=float, default=0.1, help="the share that is taken for noise (default 0.1)")
    compare.set_defaults(command=_compare)

    args = parser.parse_args()
    args.command(args)


def _run(args: argparse.Namespace) -> None:
    # The cluster is stopped on the way out, so a signal must take that way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scenarios = [s for s in SCENARIOS if s.name in args.scenarios]
    started_at, started = datetime.now(timezone.utc), time.monotonic()
    mode: Mode = "quick" if args.quick else "full"
    with Cluster((args.postgres_bin or find_postgres()).resolve()) as cluster:
        described = machine.describe(cluster.data_dir)
        bench = Bench(cluster, args.systems, args.quick)
        measurements: list[Measurement] = []
        bystanders: dict[str, float] = {}
        interrupted_in = None
        for scenario in scenarios:
            bench.log(scenario.title)
            others = machine.Bystanders()
            try:
                for measurement in scenario.run(bench):
                    bench.log(
                        f"  {measurement.system:16}{measurement.metric}: {measurement.value:,.4g} {measurement.unit}"
                    )
                    measurements.append(measurement)
            except KeyboardInterrupt:
                # What was measured so far is kept.
                interrupted_in = scenario.name
                break
            finally:
                bystanders[scenario.name] = round(others.share(), 3)
        result = Run(
            mode=mode,
            started_at=started_at.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            machine=described,
            versions={"postgres": cluster.server_version(), **machine.versions()},
            postgres=cluster.settings(),
            payload={"input": ORDER, "step output": charge(ORDER), "output": charge(ORDER)},
            bystanders=bystanders,
            measurements=measurements,
            interrupted_in=interrupted_in,
        )
    RESULTS.mkdir(exist_ok=True)
    path = args.output or RESULTS / f"{started_at:%Y%m%d-%H%M%S}-{mode}.json"
    result.save(path)
    _write(report.files(result, path.with_suffix(".md")))
    print(report.render(result))
    print(f"Kept in {path}")
    if interrupted_in is not None:
        sys.exit(1)


def _render(args: argparse.Namespace) -> None:
    run = Run.load(args.file)
    _write(report.files(run, args.file.with_suffix(".md")))
    print(report.render(run))


def _publish(args: argparse.Namespace) -> None:
    run = Run.load(args.file)
    source = args.file.resolve().relative_to(RESULTS)
    texts = report.files(run, PUBLISHED, [line.format(source=source) for line in HEADING])
    if not args.check:
        _write(texts)
    elif stale := [path.name for path, text in texts.items() if path.read_text() != text]:
        sys.exit(f"Not what {source} says: {', '.join(stale)}. Run this without --check.")


def _write(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text)


def _compare(args: argparse.Namespace) -> None:
    table, worse = report.compare(Run.load(args.old), Run.load(args.new), args.noise)
    print(table)
    sys.exit(1 if worse else 0)


def _some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
