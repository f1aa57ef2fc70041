"""What Triton's interpreter sees of a kernel: its programs, the bytes it moves, its multiplications; and its source.

    with watch() as launches:
        kernel[grid](...)
    launches[0].read["p_x"]

Needs PyTorch and Triton, and TRITON_INTERPRET=1 set before Triton is imported. Masked numbers are not counted.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from IPython.display import Markdown, display
from triton.runtime import interpreter


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    grid: tuple  # programs along each axis
    read: dict  # {argument: bytes}, of the arguments that are read
    written: dict
    multiplied: list  # one number: multiplications and divisions, those of tl.dot included

    @property
    def programs(self):
        return prod(self.grid)


@contextmanager
def watch() -> Iterator[list[Launch]]:
    """A list that gets a Launch for every kernel that is launched inside the block."""
    launches, spans = [], []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__
    times, divide, dot = builder.create_fmul, builder.create_fdiv, builder.create_dot

    def note(kind, pointers, mask):
        live = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
        if live.size and launches:
            at = int(live.flat[0])
            name = next((name for name, low, high in spans if low <= at < high), "?")
            seen = getattr(launches[-1], kind)
            size = pointers.get_element_ty().primitive_bitwidth // 8
            seen[name] = seen.get(name, 0) + size * live.size

    def watched_load(self, pointers, mask, *rest):
        note("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        note("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted(operation, count):
        def run(self, x, y, *rest):
            if launches:
                launches[-1].multiplied[0] += count(x.data, y.data)
            return operation(self, x, y, *rest)

        return run

    def launched(self, *args, **options):
        given = inspect.signature(self.fn).bind_partial(
            *args, **{name: x for name, x in options.items() if name in self.arg_names}
        )
        spans[:] = [
            (name, x.data_ptr(), x.data_ptr() + x.numel() * x.element_size())
            for name, x in given.arguments.items()
            if hasattr(x, "data_ptr") and x.numel()
        ]
        grid = self.grid(given.arguments) if callable(self.grid) else self.grid
        launches.append(Launch(self.fn.__name__, tuple(grid), {}, {}, [0]))
        return call(self, *args, **options)

    elements, inner = (lambda x, y: max(x.size, y.size)), (lambda x, y: x.size * y.shape[-1])
    with (
        patch.multiple(builder, create_masked_load=watched_load, create_masked_store=watched_store),
        patch.multiple(builder, create_fmul=counted(times, elements), create_fdiv=counted(divide, elements)),
        patch.multiple(builder, create_dot=counted(dot, inner)),
        patch.object(executor, "__call__", launched),
    ):
        yield launches


def source(kernel):
    """The source of a function or a kernel, interpreted or not."""
    return inspect.getsource(getattr(kernel, "fn", kernel)).rstrip()


def show_kernel(kernel: Any, first: str | None = None, last: str | None = None) -> None:
    """Display a kernel's own source: all of it, or from the one line with `first` in it to the next one with `last`.

    Raises ValueError where there is no such line.
    """
    lines = source(kernel).splitlines()
    if first is not None:
        begins = [i for i, line in enumerate(lines) if first in line]
        if len(begins) != 1:
            raise ValueError(f"{first!r} is in {len(begins)} lines of the source; expected 1")
        ends = [i for i in range(begins[0], len(lines)) if (last or first) in lines[i]]
        if not ends:
            raise ValueError(f"{last!r} is in no line after {first!r}")
        lines = lines[begins[0] : ends[0] + 1]
    display(Markdown(f"```python\n{textwrap.dedent(chr(10).join(lines))}\n```"))
