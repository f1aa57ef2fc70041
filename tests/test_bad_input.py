"""What does not fit is refused at the door, with the argument's name and what was expected."""

import numpy as np
import pytest
from oracle import draw

from vla_teach.chunkwise import vla_chunk
from vla_teach.reference import (
    State,
    attention_map,
    delta_rule,
    elu_plus_one,
    exact_least_squares,
    linear_attention,
    softmax_attention,
    softmax_map,
    unit_rows,
    vla_recurrent,
    z_normaliser,
)
from vla_teach.streams import correlated_stream
from vla_teach.tasks.digits import accuracy, digits_stream

T, K, V = 6, 4, 3
GOOD = draw(T=T, K=K, V=V, gain="unit") | dict(lambda_0=0.1, chunk_size=4, scale=0.5)
GOOD["g"] = GOOD["k"]
TAKES = {
    vla_recurrent: ("q", "k", "v", "u", "lambda_0", "beta", "gain"),
    vla_chunk: ("q", "k", "v", "u", "lambda_0", "beta", "gain", "chunk_size"),
    exact_least_squares: ("q", "k", "v", "u", "lambda_0"),
    delta_rule: ("q", "k", "v", "beta"),
    linear_attention: ("q", "k", "v"),
    softmax_attention: ("q", "k", "v", "scale"),
    attention_map: ("q", "k", "g", "beta"),
}
RAGGED = [[1.0, 2.0], [3.0]]
EITHER = (TypeError, ValueError)


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
    yield "booleans", x > 0, TypeError
    yield "object", x.astype(object), TypeError
    yield "float16", x.astype(np.float16), TypeError
    yield "string", x.astype(str), TypeError
    yield "dates", x.astype(int).astype("datetime64[s]"), TypeError
    yield "one string", "abc", TypeError
    yield "ragged", RAGGED, ValueError
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
        *((f"{value}", value, ValueError) for value in (0, 0.0, -0.1, np.nan, np.inf, -np.inf, 1e-320)),
        *((f"{value!r}", value, TypeError) for value in ("abc", "0.1", b"0.1", None, True, [0.1], {}, 1j)),
        ("array of one", np.array([0.1]), TypeError),
        ("10**400", 10**400, EITHER),
        ("ragged", RAGGED, EITHER),
    ],
    gain=[(f"{value!r}", value, ValueError) for value in ("Unit", "rls", "", None, ["unit"], 1)],
    chunk_size=[(f"{value!r}", value, ValueError) for value in (0, -1, 2.5, 4.0, True, False, None, "4", np.nan)],
    scale=[
        *((f"{value}", value, ValueError) for value in (np.nan, np.inf, -np.inf)),
        *((f"{value!r}", value, TypeError) for value in ("x", b"1", True, [0.5], 1j)),
        ("ragged", RAGGED, EITHER),
    ],
    g=[
        ("NaN", with_entry(GOOD["g"], np.nan), ValueError),
        ("infinity", with_entry(GOOD["g"], np.inf), ValueError),
        ("complex", GOOD["g"] + 0j, TypeError),
        ("object", GOOD["g"].astype(object), TypeError),
        ("None, but beta", None, ValueError),
        ("one number", 0.5, ValueError),
        ("a token too few", GOOD["g"][:-1], ValueError),
        ("a column too many", np.hstack([GOOD["g"], GOOD["g"][:, :1]]), ValueError),
        ("an axis too few", GOOD["g"][0], ValueError),
        ("rank 3", GOOD["g"][:, None], ValueError),
        ("ragged", RAGGED, ValueError),
    ],
)
CASES = [
    pytest.param(f, name, value, exception, id=f"{f.__name__}-{name}-{what}")
    for f, names in TAKES.items()
    for name in names
    for what, value, exception in FAULTS[name]
]
penalised = pytest.mark.parametrize("f", (vla_recurrent, vla_chunk, exact_least_squares), ids=lambda f: f.__name__)


def good(f):
    """Arguments that f takes."""
    return {name: GOOD[name] for name in TAKES[f]}


def good32(f):
    """The same in float32."""
    return {name: x.astype(np.float32) if isinstance(x, np.ndarray) else x for name, x in good(f).items()}


@pytest.mark.parametrize("f", TAKES, ids=lambda f: f.__name__)
def test_good_input_is_accepted(f):
    """Guards the tests below: without the fault there is no error."""
    f(**good(f))
    f(**good32(f))


@pytest.mark.parametrize(("f", "name", "value", "exception"), CASES)
def test_bad_argument(f, name, value, exception):
    """Guards every argument of every function that takes arrays."""
    with pytest.raises(exception, match=f"^{name} .*expected"):
        f(**good(f) | {name: value})


@pytest.mark.parametrize("what", ("NaN", "a token too few", "rank 3"))
def test_bad_gains_without_beta(what):
    """Guards g where beta is left out, as for a memory without one."""
    g = next(value for label, value, _ in FAULTS["g"] if label == what)
    with pytest.raises(ValueError, match=r"^g .*expected"):
        attention_map(GOOD["q"], GOOD["k"], g)


# ---- numbers that the dtype cannot hold -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")
@penalised
@pytest.mark.parametrize("lambda_0", (1e-60, 1e-39, 1e39, 1e60))
def test_lambda_0_that_float32_cannot_hold(f, lambda_0):
    """Guards a lambda_0 that float32 makes 0 or infinite, or its inverse. float64 takes it."""
    with pytest.raises(ValueError, match=r"^lambda_0 is .*expected .*float32"):
        f(**good32(f) | dict(lambda_0=lambda_0))
    f(**good(f) | dict(lambda_0=lambda_0))


def test_lambda_0_too_large_is_refused_without_a_warning():
    """Guards against a warning of NumPy's before the error that says what is wrong."""
    with np.errstate(all="raise"), pytest.raises(ValueError, match=r"^lambda_0 is "):
        vla_recurrent(**good32(vla_recurrent) | dict(lambda_0=1e60))


@penalised
@pytest.mark.parametrize("lambda_0", (np.array(0.5), np.array(0.5, np.float32), np.float64(0.5)), ids=repr)
def test_lambda_0_as_an_array_without_axes(f, lambda_0):
    """Guards a number as np.load gives it back."""
    assert np.array_equal(f(**good(f) | dict(lambda_0=lambda_0))[0], f(**good(f) | dict(lambda_0=0.5))[0])


TOO_WIDE = [
    (vla_recurrent, "u", with_entry(GOOD["u"], 1e300)),
    (vla_chunk, "u", with_entry(GOOD["u"], 1e300)),
    (exact_least_squares, "u", with_entry(GOOD["u"], 1e300)),
    (attention_map, "g", with_entry(GOOD["g"], 1e300)),
    (softmax_attention, "scale", 1e300),
]


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize(("f", "name", "value"), TOO_WIDE)
def test_float64_that_float32_cannot_hold(f, name, value):
    """Guards the arguments that need not have the dtype of q, k and v: here they would become infinite."""
    with pytest.raises(ValueError, match=f"^{name} .*expected"):
        f(**good32(f) | {name: value})


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
    "one number": (lambda x: 3, ValueError),
    "ragged": (lambda x: RAGGED, ValueError),
    "booleans": (lambda x: x > 0, TypeError),
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


@states
def test_part_of_a_state_that_float32_cannot_hold(f, part):
    """Guards a float64 state handed to float32 arguments."""
    state = State(**PARTS[f] | {part: with_entry(PARTS[f][part], 1e300)})
    with pytest.raises(ValueError, match=rf"^initial_state\.{part} .*expected"):
        f(**good32(f), initial_state=state)


@pytest.mark.parametrize("f", PARTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("state", ({}, (), (1, 2), [], np.ones((V, K)), "S", 5, 0, False, State()), ids=str)
def test_something_that_is_no_state(f, state):
    """Guards against a bare matrix, or anything else, handed in for a State."""
    part = next(iter(PARTS[f]))
    with pytest.raises(ValueError, match=f"^initial_state has no {part}; expected"):
        f(**good(f), initial_state=state)


STRANGERS = [
    pytest.param(f, other, id=f"{f.__name__}-{other.__name__}")
    for f in PARTS
    for other in PARTS
    if not PARTS[f].keys() <= PARTS[other].keys()
]


@pytest.mark.parametrize(("f", "other"), STRANGERS)
def test_the_state_of_another_memory(f, other):
    """Guards against a state that another memory returned and that lacks a part."""
    _, state = other(**good(other))
    with pytest.raises(ValueError, match=r"^initial_state has no (S|A|keys); expected"):
        f(**good(f), initial_state=state)


NO_INVERSES = {
    "zero": np.zeros((K, K)),
    "negative definite": -np.eye(K),
    "indefinite": np.diag([1.0, 1.0, 1.0, -1e-3]),
    "singular": np.diag([1.0, 1.0, 1.0, 0.0]),
    "asymmetric above": np.eye(K) + 0.01 * np.triu(np.ones((K, K)), 1),
    "asymmetric below": np.eye(K) + 0.01 * np.tril(np.ones((K, K)), -1),
}


@penalised
@pytest.mark.parametrize("A", NO_INVERSES.values(), ids=NO_INVERSES.keys())
def test_state_whose_A_inverts_no_penalty(f, A):
    """Guards initial_state.A, which must be symmetric and positive definite."""
    with pytest.raises(ValueError, match=r"^initial_state\.A is .*expected"):
        f(**good(f), initial_state=State(S=np.ones((V, K)), A=A))


@penalised
def test_state_whose_A_is_symmetric_to_rounding(f):
    """Guards against refusing what rounding leaves of symmetry."""
    f(**good(f), initial_state=State(S=np.ones((V, K)), A=np.eye(K) + 1e-7 * np.tril(np.ones((K, K)))))


def test_keys_and_values_of_a_softmax_state_belong_together():
    """Guards a cache of as many values as keys."""
    with pytest.raises(ValueError, match=r"^initial_state\.values .*expected"):
        softmax_attention(**good(softmax_attention), initial_state=State(keys=np.ones((2, K)), values=np.ones((3, V))))


# ---- streams ----------------------------------------------------------------------------------------------------

STREAM_FAULTS = [
    *((name, value, ValueError) for name in ("T", "K", "V") for value in (0, -1, 2.5, 8.0, True, 2**32, "a", None)),
    *(("correlation", value, ValueError) for value in (-0.1, 1, 1.5, np.nan, np.inf)),
    *(("correlation", value, TypeError) for value in ("a", None, True, [0.5], np.array([0.5]), np.array([0.5, 0.2]))),
    *(("direction", value, ValueError) for value in ("sideways", None, ["projected"])),
    *(("seed", value, ValueError) for value in (-1, 2**32, 1.5, 1.0, True, "a", None)),
]


@pytest.mark.parametrize(("name", "value", "exception"), STREAM_FAULTS)
def test_bad_stream(name, value, exception):
    """Guards the arguments of correlated_stream."""
    with pytest.raises(exception, match=f"^{name} .*expected"):
        correlated_stream(**dict(T=T, K=K) | {name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 2**32 - 1), ("seed", np.int64(3)), ("correlation", np.array(0.5))]
)
def test_good_stream(name, value):
    """Guards the ends of what is allowed, and NumPy's own numbers."""
    assert np.isfinite(correlated_stream(**dict(T=T, K=K) | {name: value}).k).all()


DIGITS_FAULTS = [
    *(("n_train", value) for value in (0, -1, 1797, 10**6, 2.5, 10.0, np.nan, None, "a", True)),
    *(("seed", value) for value in (-1, 1.5, 1.0, None, "a", True)),
]


@pytest.mark.parametrize(("name", "value"), DIGITS_FAULTS)
def test_bad_split_of_the_digits(name, value):
    """Guards a split that leaves nothing on one side, and what is no whole number."""
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=f"^{name} .*expected"):
        digits_stream(**{name: value})


# ---- maps, features, scores -------------------------------------------------------------------------------------


q, k = GOOD["q"], GOOD["k"]
NOT_NUMBERS = {
    "NaN": (with_entry(q, np.nan), ValueError),
    "infinity": (with_entry(q, np.inf), ValueError),
    "ragged": (RAGGED, ValueError),
    "complex": (q + 0j, TypeError),
    "booleans": (q > 0, TypeError),
    "string": ("a", TypeError),
    "None": (None, TypeError),
}
PLACES = {  # a call with one argument left open, and that argument's name
    "softmax_map-q": (lambda x: softmax_map(x, k), "q"),
    "softmax_map-k": (lambda x: softmax_map(q, x), "k"),
    "elu_plus_one": (elu_plus_one, "x"),
    "unit_rows": (unit_rows, "x"),
    "z_normaliser-phi_q": (lambda x: z_normaliser(x, k), "phi_q"),
    "z_normaliser-phi_k": (lambda x: z_normaliser(q, x), "phi_k"),
    "accuracy": (lambda x: accuracy(x, test=None), "S"),
}


@pytest.mark.parametrize(("f", "name"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize(("value", "exception"), NOT_NUMBERS.values(), ids=NOT_NUMBERS.keys())
def test_what_is_not_an_array_of_numbers(f, name, value, exception):
    """Guards the small functions against entries that are no finite numbers."""
    with pytest.raises(exception, match=f"^{name} .*expected"):
        f(value)


SHAPES = {
    "softmax_map, q without tokens": (softmax_map, (q[:0], k), "q"),
    "softmax_map, q of rank 1": (softmax_map, (q[0], k), "q"),
    "softmax_map, q of rank 3": (softmax_map, (q[None], k), "q"),
    "softmax_map, k of rank 3": (softmax_map, (q, k[None]), "q .* k"),
    "softmax_map, k narrower": (softmax_map, (q, k[:, 1:]), "q .* k"),
    "softmax_map, more queries than keys": (softmax_map, (q, k[1:]), "q .* k"),
    "z_normaliser, rank 1": (z_normaliser, (q[0], k[0]), "phi_q"),
    "z_normaliser, rank 3": (z_normaliser, (q[None], k[None]), "phi_q"),
    "z_normaliser, phi_q shorter": (z_normaliser, (q[1:], k), "phi_q"),
    "z_normaliser, phi_k narrower": (z_normaliser, (q, k[:, 1:]), "phi_q"),
    "accuracy, transposed": (accuracy, (np.ones((64, 10)), None), "S"),
    "accuracy, too narrow": (accuracy, (np.ones((10, 63)), None), "S"),
    "accuracy, a class too many": (accuracy, (np.ones((11, 64)), None), "S"),
    "accuracy, rank 1": (accuracy, (np.ones(640), None), "S"),
    "accuracy, rank 3": (accuracy, (np.ones((1, 10, 64)), None), "S"),
    "accuracy, one number": (accuracy, (1.0, None), "S"),
    "softmax_map, width 0": (softmax_map, (q[:, :0], k[:, :0]), "q"),
    "unit_rows, one number": (unit_rows, (3.0,), "x"),
}


@pytest.mark.parametrize(("f", "arguments", "names"), SHAPES.values(), ids=SHAPES.keys())
def test_bad_shape(f, arguments, names):
    """Guards the small functions against arrays that do not fit together."""
    with pytest.raises(ValueError, match=f"^{names} .*expected"):
        f(*arguments)


@pytest.mark.parametrize(("value", "exception"), [(v, e) for _, v, e in FAULTS["scale"][:-1]], ids=repr)
def test_bad_scale_of_a_softmax_map(value, exception):
    """Guards softmax_map where it is called without softmax_attention."""
    with pytest.raises(exception, match=r"^scale .*expected"):
        softmax_map(q, k, scale=value)


def test_lists_are_accepted_by_the_features():
    """Guards lists of whole numbers, which are taken for floats."""
    assert np.array_equal(elu_plus_one([[0, 3], [-1, 1]]), [[1, 4], [np.exp(-1), 2]])
    assert np.array_equal(unit_rows([[3, 4], [0, 0]]), [[0.6, 0.8], [0, 0]])
    assert np.array_equal(z_normaliser([[1, 2], [3, 4]], [[1, 0], [1, 1]]), [[1], [10]])
    assert np.array_equal(softmax_map([[1, 0], [0, 0]], [[1, 0], [0, 1]]), [[1, 0], [0.5, 0.5]])


@penalised
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e20), (np.float64, 1e160)])
@pytest.mark.parametrize("name", ("k", "u"))
def test_a_row_too_long_for_its_dtype(f, dtype, size, name):
    """Guards against keys and directions whose length overflows: they would be written nowhere, in silence."""
    arguments = {key: np.asarray(x, dtype) if isinstance(x, np.ndarray) else x for key, x in good(f).items()}
    arguments[name] = with_entry(arguments[name], size)
    with pytest.raises(ValueError, match=f"^{name} has a row whose length .*expected"):
        f(**arguments)


def test_a_penalty_that_float32_cannot_factor():
    """Guards against a bare LinAlgError from the chunkwise form: the message says what to change."""
    k, v, u = correlated_stream(2000, 32, correlation=0.95, direction="along the key")
    few = [x.astype(np.float32) for x in (k, k, v, u)]
    with pytest.raises(ValueError, match=r"^lambda_0 is too small for float32 .*expected a larger lambda_0 or float64"):
        vla_chunk(*few, lambda_0=1e-6)
    vla_chunk(k, k, v, u, lambda_0=1e-6)
