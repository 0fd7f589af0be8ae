"""What a worker process runs: python -m benchmarks.worker --system durable --profile default --dsn …"""

from __future__ import annotations

import argparse

from benchmarks import processes, systems


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True, choices=systems.NAMES)
    parser.add_argument("--profile", required=True, choices=["throughput", "default"])
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--mark-fd", type=int, default=None)
    args = parser.parse_args()

    def mark(sample: int) -> None:
        processes.write_mark(args.mark_fd, sample)

    systems.load(args.system).serve(args.dsn, args.profile, mark)


if __name__ == "__main__":
    main()
