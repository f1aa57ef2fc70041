"""Benchmark: VLA's back ends and the kernels of others on one GPU, in one run, each checked before it is timed.

    python -m vla_teach.bench --table
    python -m vla_teach.bench --quick --table --out bench.json

`contestants` says who takes part and what a right result is, `measure` checks, times and counts, `report` reads the
file that is written. It needs PyTorch, tqdm and a CUDA GPU, for two of the peers flash-linear-attention (fla-core).
"""
