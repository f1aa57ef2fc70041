"""Broken copies of a module: one piece of its text replaced, compiled in memory, handed to the checks that must notice.

No file is written. The lists of replacements stand in the test files beside the checks.
"""

import inspect
import types

import numpy as np
import pytest


def compiled(module, source):
    """A fresh module object from source text that stands in for `module`."""
    copy = types.ModuleType("a_copy")
    exec(compile(source, f"<copy of {module.__name__}>", "exec"), copy.__dict__)
    return copy


def passes(check, module):
    """The check accepts a copy as it is: what it refuses below, it refuses for the mutation."""
    check(compiled(module, inspect.getsource(module)))


def refuses(check, module, original, broken):
    """The check refuses a copy in which `original`, found once, is `broken`: by a wrong number and not by a crash."""
    source = inspect.getsource(module)
    assert source.count(original) == 1, f"{original!r} is in the source {source.count(original)} times, not once"
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        check(compiled(module, source.replace(original, broken)))
