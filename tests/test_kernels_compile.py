"""Every kernel that a call launches compiles for a Hopper GPU and fits its shared memory; no GPU is needed for that.

Run by itself, this file compiles: it prints a line of JSON for each kernel. In the tests' own process Triton may be
there already, made to interpret.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

SHARED = 232448  # bytes that one program may have on an H100
CASES = [  # K, V, R, dtype, gain
    (64, 64, 1, "bfloat16", "unit"),
    (128, 128, 1, "bfloat16", "interpolate"),
    (128, 128, 2, "float32", "unit"),
    (32, 64, 1, "float16", "least_squares"),
]
KERNELS = {
    *("row_sums", "prefix", "solve", "triangle", "walk", "outputs"),
    *("mirror", "walk_back", "write_gradients", "pair_sums", "penalty_gradients", "walk_tokens", "ends", "starts"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{case: [(kernel, bytes of shared memory), ...]}."""
    triton = find_spec("triton")
    if not triton or not (Path(triton.origin).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("no Triton with a compiler for NVIDIA's GPUs")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {case: [] for case in CASES}
    for line in done.stdout.splitlines():
        case, kernel, shared = json.loads(line)
        results[tuple(case)].append((kernel, shared))
    return results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compile_and_fit(compiled, case):
    """Guards both passes, of a slice, too, and a step: each kernel is there, none asks for too much shared memory."""
    assert {kernel for kernel, _ in compiled[case]} == KERNELS
    large = [(kernel, shared) for kernel, shared in compiled[case] if shared > SHARED]
    assert not large, f"more than {SHARED} bytes: {large}"


def specialised(function, arguments):
    """What Triton's compiler is given for a launch: types, the constants among the arguments, what 16 divides."""
    types, constants, hints = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(function.arg_names, function.params, strict=True)):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            types[name] = {
                "float32": "*fp32",
                "bfloat16": "*bf16",
                "float16": "*fp16",
                "int32": "*i32",
                "int64": "*i64",
            }[str(value.dtype).removeprefix("torch.")]
            hints[(i,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or value == 1:
            types[name], constants[(i,)] = "constexpr", value
        else:
            types[name], hints[(i,)] = "i32", [["tt.divisibility", 16]] if value % 16 == 0 else []
    return dict(signature=types, constexprs=constants, attrs=hints)


class Alone:
    """The other slices where there are none: as `vla_teach.distributed.Others`."""

    def before(self, S, Q, P):
        self.last = S @ P + Q
        return S

    def after(self, dS, D):
        return dS, D


def compile_all():
    """Runs each case on tensors that no kernel touches: launches are compiled for sm_90 instead."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from vla_teach.kernels.run import vla_tokens
    from vla_teach.kernels.token import token_by_token

    def launch(function, *arguments, grid, warmup, **named):
        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        source = specialised(function, dict(zip(function.arg_names, arguments, strict=False)) | named)
        kernel = triton.compile(ASTSource(fn=function, **source), target=GPUTarget("cuda", 90, 32), options=options)
        print(json.dumps([case, function.__name__, kernel.metadata.shared]), flush=True)

    JITFunction.run = launch
    B, T, H = 1, 256, 16
    for case in CASES:
        K, V, R, dtype, gain = case
        shapes = (B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, R, K), (B, T, H)
        tokens = [torch.zeros(shape, dtype=getattr(torch, dtype), requires_grad=True) for shape in shapes]
        S, A = torch.zeros(B, H, V, K), torch.zeros(B, H, K, K)
        o, _, _ = vla_tokens(*tokens, S, A, gain)
        o.sum().backward()
        vla_tokens(*tokens, S, A, gain, others=Alone())[0].sum().backward()
        token_by_token(*(x[:, :1] for x in tokens), S, A, gain)


if __name__ == "__main__":
    compile_all()
