"""The teaching scan: the order of its steps, any length, and its count."""

import numpy as np
import pytest
from oracle import assert_close

from vla_teach.counting import H100, multiplications
from vla_teach.reference import write
from vla_teach.scan import compose, prefix, scan_states


def joined(first, second):
    return (first[0] + second[0],)


@pytest.mark.parametrize("T", (1, 2, 8, 32))
def test_prefix_keeps_the_order(T):
    """Guards both sweeps: to join letters is associative and not commutative."""
    letters = np.array([chr(97 + i) for i in range(T)], dtype=object)
    (before,) = prefix((letters,), joined, ("",))
    assert list(before) == ["".join(letters[:t]) for t in range(T)]
    assert letters[-1] == chr(96 + T)  # the input is left as it was


def test_prefix_wants_a_power_of_two():
    """Guards the last entries, which a tree of another size would get wrong."""
    with pytest.raises(ValueError, match="there are 6 steps; expected a power of two"):
        prefix((np.arange(6),), joined, (0,))


@pytest.mark.parametrize("T", (1, 2, 7, 16, 33))
def test_states_are_those_of_the_loop(T):
    """Guards the maps, their composition and the filling up, from a state that is not zero."""
    rng = np.random.default_rng(T)
    k, g, v, S = *rng.normal(size=(2, T, 5)) / 2, rng.normal(size=(T, 3)), rng.normal(size=(3, 5))
    found, state = scan_states(k, v, g, S), S
    for t in range(T):
        state = write(state, k[t], v[t], g[t])
        assert_close(found[t], state, 1e-12)


def test_multiplications_are_counted():
    """Guards the counts in the chapters: products of matrices, stacks of them, and nothing else."""
    x, y = np.ones((4, 3, 5)), np.ones((5, 2))
    assert multiplications(lambda a, b: a @ b, x, y) == 4 * 3 * 5 * 2
    assert multiplications(lambda a, b: (a + a) @ b @ np.ones((2, 7)), x, y) == 4 * 3 * 5 * 2 + 4 * 3 * 2 * 7
    assert multiplications(lambda a: a * a, x) == 0
    T, K, V = 16, 4, 3
    pairs = (np.ones((T, K, K)), np.ones((T, V, K)))
    found = multiplications(lambda P, Q: prefix((P, Q), compose, (np.eye(K), np.zeros((V, K)))), *pairs)
    assert found == 2 * (T - 1) * K**2 * (K + V)


def test_the_numbers_of_the_gpu_agree():
    """Guards the typed numbers of the data sheet: rates are units times operations a tick times ticks a second."""
    assert H100.float32 == pytest.approx(H100.multiprocessors * 128 * 2 * H100.clock, rel=0.01)
    # a multiprocessor's tensor cores make 4096 operations a tick; with them at work its clock is at most 1.83e9
    assert H100.bfloat16 == pytest.approx(H100.multiprocessors * 4096 * 1.83e9, rel=0.01)
    assert H100.tf32 == pytest.approx(H100.bfloat16 / 2, rel=0.01)
    assert H100.bandwidth == pytest.approx(5 * 1024 / 8 * 5.2e9, rel=0.01)  # five stacks, 1024 lines, 5.2 Gbit/s each
    assert H100.registers * 4 == 256 * 2**10
