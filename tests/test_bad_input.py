"""What does not fit is refused at the door, with the argument's name and what was expected."""

import numpy as np
import pytest
from oracle import draw

from vla_teach.chunkwise import vla_chunk
from vla_teach.reference import (
    State,
    attention_map,
    delta_rule,
    exact_least_squares,
    linear_attention,
    softmax_attention,
    vla_recurrent,
)
from vla_teach.streams import correlated_stream
from vla_teach.tasks.digits import digits_stream

T, K, V = 6, 4, 3
GOOD = draw(T=T, K=K, V=V, gain="unit") | dict(lambda_0=0.1, chunk_size=4)
TAKES = {
    vla_recurrent: ("q", "k", "v", "u", "lambda_0", "beta", "gain"),
    vla_chunk: ("q", "k", "v", "u", "lambda_0", "beta", "gain", "chunk_size"),
    exact_least_squares: ("q", "k", "v", "u", "lambda_0"),
    delta_rule: ("q", "k", "v", "beta"),
    linear_attention: ("q", "k", "v"),
    softmax_attention: ("q", "k", "v"),
}
TAKES_MAP = ("q", "k", "beta")  # attention_map, beside its gains


def with_entry(x, value):
    """A copy of x with one entry replaced."""
    x = x.copy()
    x.flat[-1] = value
    return x


def array_faults(name):
    """(what is wrong, the bad value, the exception) for an array argument."""
    x = GOOD[name]
    yield "NaN", with_entry(x, np.nan), ValueError
    yield "infinity", with_entry(x, np.inf), ValueError
    yield "minus infinity", with_entry(x, -np.inf), ValueError
    yield "complex", x + 0j, TypeError
    yield "object", x.astype(object), TypeError
    yield "float16", x.astype(np.float16), TypeError
    yield "string", x.astype(str), TypeError
    yield "dates", x.astype(int).astype("datetime64[s]"), TypeError
    yield "one string", "abc", TypeError
    yield "one number", 0.5, ValueError
    yield "an axis too few", x[0], ValueError
    yield "an axis too many", x[..., None], ValueError
    yield "two axes too many", x[..., None, None], ValueError
    yield "no tokens", x[:0], ValueError
    yield "empty list", [], ValueError
    if name != "beta":
        yield "None", None, TypeError
        yield "no columns", x[:, :0], ValueError
    if name != "k":  # the others are measured by k
        yield "a token too few", x[:-1], ValueError
        yield "a token too many", np.concatenate([x, x[:1]]), ValueError
    if name in "qu":
        yield "a column too few", x[:, :-1], ValueError
        yield "a column too many", np.hstack([x, x[:, :1]]), ValueError
    if name == "u":
        yield "rank 0", np.zeros((T, 0, K)), ValueError
        yield "rank 2, wrong K", np.zeros((T, 2, K + 1)), ValueError
        yield "rank 2, wrong T", np.zeros((T + 1, 2, K)), ValueError
    if name == "beta":
        yield "below 0", with_entry(x, -1e-9), ValueError
        yield "above 1", with_entry(x, 1 + 1e-9), ValueError


FAULTS = {name: list(array_faults(name)) for name in ("q", "k", "v", "u", "beta")} | dict(
    lambda_0=[
        *((f"{value}", value, ValueError) for value in (0, 0.0, -0.1, np.nan, np.inf, -np.inf)),
        *((f"{value!r}", value, TypeError) for value in ("abc", None, [0.1], 1j)),
    ],
    gain=[(f"{value!r}", value, ValueError) for value in ("Unit", "rls", "", None, ["unit"], 1)],
    chunk_size=[(f"{value!r}", value, ValueError) for value in (0, -1, 2.5, True, False, None, "4", np.nan)],
)
CALLS = [(f, name) for f, names in TAKES.items() for name in names] + [(attention_map, name) for name in TAKES_MAP]
CASES = [
    pytest.param(f, name, value, exception, id=f"{f.__name__}-{name}-{what}")
    for f, name in CALLS
    for what, value, exception in FAULTS[name]
]


def good(f):
    """Arguments that f takes."""
    if f is attention_map:
        return {name: GOOD[name] for name in TAKES_MAP} | dict(g=GOOD["k"])
    return {name: GOOD[name] for name in TAKES[f]}


@pytest.mark.parametrize("f", [*TAKES, attention_map], ids=lambda f: f.__name__)
def test_good_input_is_accepted(f):
    """Guards the tests below: without the fault there is no error."""
    f(**good(f))


@pytest.mark.parametrize(("f", "name", "value", "exception"), CASES)
def test_bad_argument(f, name, value, exception):
    """Guards every argument of every function that takes arrays."""
    with pytest.raises(exception, match=f"^{name} .*expected"):
        f(**good(f) | {name: value})


# ---- initial states ---------------------------------------------------------------------------------------------


PARTS = {  # the parts of a state that each memory needs, with good values
    vla_recurrent: dict(S=np.ones((V, K)), A=np.eye(K)),
    vla_chunk: dict(S=np.ones((V, K)), A=np.eye(K)),
    exact_least_squares: dict(S=np.ones((V, K)), A=np.eye(K)),
    delta_rule: dict(S=np.ones((V, K))),
    linear_attention: dict(S=np.ones((V, K))),
    softmax_attention: dict(keys=np.ones((2, K)), values=np.ones((2, V))),
}
STATE_FAULTS = {
    "NaN": (lambda x: with_entry(x, np.nan), ValueError),
    "infinity": (lambda x: with_entry(x, np.inf), ValueError),
    "object": (lambda x: x.astype(object), TypeError),
    "a column too many": (lambda x: np.hstack([x, x[:, :1]]), ValueError),
    "an axis too few": (lambda x: x[0], ValueError),
    "an axis too many": (lambda x: x[None], ValueError),
}
STATE_CASES = [
    pytest.param(f, part, fault, exception, id=f"{f.__name__}-{part}-{what}")
    for f, parts in PARTS.items()
    for part in parts
    for what, (fault, exception) in STATE_FAULTS.items()
]
states = pytest.mark.parametrize(
    ("f", "part"), [pytest.param(f, p, id=f"{f.__name__}-{p}") for f, parts in PARTS.items() for p in parts]
)


@pytest.mark.parametrize("f", PARTS, ids=lambda f: f.__name__)
def test_good_state_is_accepted(f):
    """Guards the tests below: without the fault there is no error."""
    f(**good(f), initial_state=State(**PARTS[f]))


@pytest.mark.parametrize(("f", "part", "fault", "exception"), STATE_CASES)
def test_bad_state(f, part, fault, exception):
    """Guards the size and the numbers of each part of a state."""
    state = State(**PARTS[f] | {part: fault(PARTS[f][part])})
    with pytest.raises(exception, match=rf"^initial_state\.{part} .*expected"):
        f(**good(f), initial_state=state)


@states
def test_missing_part_of_a_state(f, part):
    """Guards against the state of another memory, which lacks a part."""
    with pytest.raises(ValueError, match=f"^initial_state has no {part}; expected"):
        f(**good(f), initial_state=State(**PARTS[f] | {part: None}))


@pytest.mark.parametrize("f", [f for f in PARTS if f is not softmax_attention], ids=lambda f: f.__name__)
@pytest.mark.parametrize("state", ({}, np.ones((V, K)), "S", 5), ids=lambda state: type(state).__name__)
def test_something_that_is_no_state(f, state):
    """Guards against a bare matrix handed in for a State."""
    with pytest.raises(ValueError, match=r"^initial_state has no S; expected"):
        f(**good(f), initial_state=state)


def test_keys_and_values_of_a_softmax_state_belong_together():
    """Guards a cache of as many values as keys."""
    with pytest.raises(ValueError, match=r"^initial_state\.values .*expected"):
        softmax_attention(**good(softmax_attention), initial_state=State(keys=np.ones((2, K)), values=np.ones((3, V))))


# ---- streams ----------------------------------------------------------------------------------------------------


SIZE_FAULTS = (0, -1, 2.5, "a", None)
STREAM_CASES = [
    *((name, value) for name in ("T", "K", "V") for value in SIZE_FAULTS),
    *(("correlation", value) for value in (-0.1, 1, 1.5, np.nan, np.inf)),
    *(("direction", value) for value in ("sideways", None, ["projected"])),
]


@pytest.mark.parametrize(("name", "value"), STREAM_CASES)
def test_bad_stream(name, value):
    """Guards the arguments of correlated_stream."""
    with pytest.raises(ValueError, match=f"^{name} .*expected"):
        correlated_stream(**dict(T=T, K=K) | {name: value})


@pytest.mark.parametrize("n_train", (0, -1, 1797, 10**6, np.nan))
def test_bad_split_of_the_digits(n_train):
    """Guards a split that leaves nothing on one side."""
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"^n_train .*expected"):
        digits_stream(n_train)
