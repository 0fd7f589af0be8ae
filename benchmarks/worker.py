"""What a worker process runs: python -m benchmarks.worker --system durable --profile default --dsn …"""

from __future__ import annotations

import argparse

from benchmarks import systems
from benchmarks.processes import WorkerOptions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True, choices=systems.NAMES)
    parser.add_argument("--profile", required=True, choices=["throughput", "default"])
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--in-flight", required=True, type=int)
    parser.add_argument("--mark-fd", type=int, default=None)
    parser.add_argument("--names", type=int, default=None)
    args = parser.parse_args()

    options = WorkerOptions(args.dsn, args.profile, args.in_flight, args.mark_fd, args.names)
    systems.load(args.system).serve(options)


if __name__ == "__main__":
    main()
