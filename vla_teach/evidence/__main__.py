"""The command line: python -m vla_teach.evidence {list, run NAME}."""

import argparse
import sys
import tempfile
from pathlib import Path

from vla_teach.evidence import MEASUREMENTS
from vla_teach.evidence.run import measure, module
from vla_teach.experiments.results import ROOT


def main(words=None):
    """Runs one command; returns the exit code: 0, 2 where the command is wrong, 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m vla_teach.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every measurement in a line, and its minutes")
    run = commands.add_parser("run", help="measure, and write the results")
    run.add_argument("name", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    run.add_argument(
        "--size", choices=("smoke", "full"), default="full", help="smoke: seconds; full: what the book shows"
    )
    run.add_argument("--out", type=Path, help="the file to write; book/results/NAME.json, for smoke a temporary one")
    run.add_argument("--fresh", action="store_true", help="forget the OUT.partial that a stopped run left")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(words)
    if args.command == "list":
        for name in MEASUREMENTS:
            print(f"{name:16}{module(name).ABOUT} ({module(name).MINUTES} minutes)")
        return 0
    try:
        out = args.out or default_out(args.name, args.size)
        measure(args.name, args.size, out, args.fresh, args.quiet)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"written to {out}")
    return 0


def default_out(name, size):
    """Where results go, unless --out says."""
    if size == "smoke":
        return Path(tempfile.mkdtemp(prefix="vla_teach_")) / f"{name}.json"
    if not (ROOT / "book").is_dir():
        raise ValueError("this package is not in its repository; say where with --out FILE")
    return ROOT / f"book/results/{name}.json"


if __name__ == "__main__":
    sys.exit(main())
