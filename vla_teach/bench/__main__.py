"""The command line: python -m vla_teach.bench, on a machine with a CUDA GPU."""

import argparse
import math
import sys
from pathlib import Path

import torch

from vla_teach.bench.contestants import CONTESTANTS
from vla_teach.bench.report import table
from vla_teach.bench.run import LENGTHS, SHORTER, Settings, bench
from vla_teach.experiments.results import ROOT

QUICK = (1024, 4096, 16384)


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 after a failed check, 2 without a GPU or for a wrong command, 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m vla_teach.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"D 64, T {' '.join(map(str, QUICK))}, decoding for 1")
    parser.add_argument("--B", type=whole, default=1, help="sequences")
    parser.add_argument("--H", type=whole, default=16, help="heads")
    parser.add_argument("--D", type=whole, nargs="+", help="widths of a head; 64 128")
    parser.add_argument("--T", type=whole, nargs="+", help="lengths; 1024, 2048, ... 65536, for D = 128 three of them")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
                        help=", ".join(CONTESTANTS))  # fmt: skip
    parser.add_argument("--seconds", type=float, default=1.0, help="the most for the repetitions of one measurement")
    parser.add_argument("--out", type=Path, help="the file to write; book/results/bench.json")
    parser.add_argument("--resume", action="store_true", help="go on from the OUT.partial that a stopped run left")
    parser.add_argument("--table", action="store_true", help="print all medians at the end")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(words)
    try:
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA GPU here; nothing was measured")
        settings = settings_of(args)
        if args.out is None and not (ROOT / "book").is_dir():
            raise ValueError("this package is not in its repository; say where with --out FILE")
        out = args.out or ROOT / "book/results/bench.json"
        command = " ".join([parser.prog, *without_out(sys.argv[1:] if words is None else words)])
        content = bench(settings, out, "cuda", args.resume, command, args.quiet)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if args.table:
        print(table(content))
    print(f"written to {out}")
    return 0 if all(one["passed"] for one in content["checks"]) else 1


def whole(text):
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def settings_of(args):
    """The settings that the command line asks for."""
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds is {args.seconds}; expected a number above 0")
    widths = args.D or ((64,) if args.quick else (64, 128))
    usual = {D: QUICK if args.quick else SHORTER.get(D, LENGTHS) for D in widths}
    lengths = {D: tuple(sorted(set(args.T or usual[D]))) for D in usual}
    names = tuple(name for name in CONTESTANTS if name in args.contestants)
    decode = (1,) if args.quick else Settings.decode
    return Settings(lengths, args.B, args.H, args.dtype, names, args.seconds, decode)


def without_out(words):
    """The words of a command without the path that --out names."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--out"):
            kept.append(word)
        skip = word == "--out"
    return kept


if __name__ == "__main__":
    sys.exit(main())
