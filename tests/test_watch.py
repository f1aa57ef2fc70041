"""The watched interpreter: what it counts is what a kernel does, and it leaves the interpreter as it was."""

import os
import subprocess
import sys

from vla_teach.site.notebooks import ROOT

# A process of its own: Triton decides when it is imported whether it interprets.
WATCHED = """
import torch, triton
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder
from vla_teach import watch
from vla_teach.kernels.tiles import inverse
from vla_teach.kernels.token import walk_tokens

@triton.jit
def scale(p_x, p_y, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(p_x + i, i < n, 0.0)
    tl.store(p_y + i, 2.0 * x, i < n)

@triton.jit
def product(p_x, p_y, n, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(p_x + i[:, None] * B + i)
    tl.store(p_y + i[:, None] * B + i, tl.dot(x, x))

before = GridExecutor.__call__, InterpreterBuilder.create_masked_load
x, y = torch.ones(13), torch.zeros(13)
with watch.watch() as launches:
    scale[(2,)](x, y, 13, B=8)
    product[(1,)](torch.ones(16, 16, dtype=torch.float16), torch.zeros(16, 16), 13, B=16)
assert (GridExecutor.__call__, InterpreterBuilder.create_masked_load) == before
scale[(2,)](x, y, 13, B=8)
one, two = launches
assert (y == 2).all()
assert one == ("scale", (2,), {"p_x": 52}, {"p_y": 52}, [16]) and one.programs == 2
assert two == ("product", (1,), {"p_x": 512}, {"p_y": 1024}, [4096])

shown = []
watch.display = lambda words: shown.append(words.data)
watch.show_kernel(inverse)
watch.show_kernel(walk_tokens, "for r in", "A -=")
assert shown[0].startswith("```python\\n@triton.jit\\ndef inverse") and shown[0].endswith("return -M\\n```")
assert shown[1].startswith("```python\\nfor r in") and shown[1].endswith("w[None, :]\\n```")
wrong = ("no such line", None, "in 0 lines"), ("tl.load", None, "lines"), ("for r in", "nor this", "after")
for first, last, words in wrong:
    try:
        watch.show_kernel(walk_tokens, first, last)
    except ValueError as error:
        assert words in str(error)
    else:
        raise AssertionError(first)
print("fine")
"""


def test_what_is_counted(tmp_path):
    """Guards the counts that chapters print: bytes without the masked ones, multiplications, programs, and excerpts."""
    (tmp_path / "watched.py").write_text(WATCHED)  # Triton reads a kernel's source
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, tmp_path / "watched.py"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "fine\n", done.stderr
