"""One sequence over 2 and 4 processes: results, gradients, mistakes in one of them, processes that are lost."""

import pytest
import torch
from oracle import GAINS
from oracle_distributed import LATE, Ranks, call, check_all, check_small, lose

from vla_teach import ops

CASES = (
    *(dict(lengths=lengths, gain=gain, backend=backend, R=R, gated=R == 2, start=start)
      for gain in GAINS
      for lengths, backend, R, start in (
          ((5, 3), "chunk", 1, "lambda_0"),
          ((3, 1, 6, 2), "chunk", 2, "state"),
          ((1, 4, 1, 1), "recurrent", 2, "lambda_0"),
      )),
    dict(lengths=(70, 1, 65, 130), R=2),  # several chunks a slice
    dict(lengths=(3, 1, 6, 2), K=5, V=2, zero_key=True),
)  # fmt: skip
PACKED = (
    dict(lengths=(3, 1, 7, 2), packed=[0, 2, 5, 6, 9, 13], start="state"),  # one over three ranks, some within one
    dict(lengths=(4, 4), packed=[0, 4, 8], R=2),  # cut where a sequence ends
    dict(lengths=(2, 2, 2, 2), packed=[0, 8], backend="recurrent"),
)
LOW = dict(dtype=torch.float32, tol=1e-3, K=16, V=16, H=1, backend="triton")  # by Triton's interpreter
KERNELS = (
    dict(lengths=(2, 1), packed=[0, 3]),
    dict(lengths=(6, 3), R=2, start="state"),
    dict(lengths=(3, 1, 6, 2), packed=[0, 2, 5, 12], gain="interpolate", gated=True, start="state"),
    dict(lengths=(5, 6), apart=True),
    dict(lengths=(3, 4), only=("q", "u")),
)
PIECES = dict(CHUNK=16, ANCHOR=1, PART=64, PROGRAMS=1)  # parts of two chunks of two sequences
KERNEL_MUTATIONS = (
    (
        "states = everyones(mine, self.group), [S[..., :V, :K]]",
        "states = everyones(mine, self.group), [0 * S[..., :V, :K]]",
    ),
    ("states[-1] @ both[:, :, V:] + both[:, :, :V]", "states[-1] + both[:, :, :V]"),
    ("states[place(self.group)[0]], S)[self.some]", "states[0], S)[self.some]"),
    ("gradients = [all_[:, 0].sum(0)]", "gradients = [mine[0]]"),
    ("gradients[0] @ P_j.mT + D_j", "gradients[0] @ P_j + D_j"),
    ("gradients[0] @ P_j.mT + D_j", "gradients[0] @ P_j.mT"),
    ("gradients[rank + 1], dS", "gradients[rank], dS"),
    ("gradients[0] if rank == 0 else", "gradients[0] if rank >= 0 else"),
)
MUTATIONS = (
    ("M[rank], gain, backend)", "M[rank + 1], gain, backend)"),  # the prefix has its own slice
    ("M[rank], gain, backend)", "M[0], gain, backend)"),
    ("states[-1] @ P_j + Q_j", "states[-1] + Q_j"),  # the map left out
    ("states[-1] @ P_j + Q_j", "states[-1] @ P_j.mT + Q_j"),
    ("gather(torch.cat([Q, P], 2)).split", "gather(torch.cat([Q, P], 2)).flip(0).split"),  # composed backwards
    ("gather(torch.cat([Q, P], 2)).split", "gather(torch.cat([Q, P], 2)).detach().requires_grad_().split"),
    ("states = [S]", "states = [0 * S]"),
    ("read(states[rank], ", "read(states[rank + 1], "),
    ("o = o + read(", "o = o + 0 * read("),
    ("Together.apply(o, states[-1], M[-1])", "Together.apply(o, states[rank], M[-1])"),
    ("Together.apply(o, states[-1], M[-1])", "Together.apply(o, states[-1], M[rank])"),
    ("own_sum(tokens[3].to(dtype)", "own_sum(tokens[3].detach().to(dtype)"),
    ("own_sum(tokens[3].to(dtype)", "own_sum(tokens[3][..., :1, :].to(dtype)"),  # the first of R directions
    ("return mine, None", "return dx[place(ctx.group)[0]], None"),  # nobody else's gradient
    ("return mine, None", "return mine / len(dx), None"),
)


@pytest.fixture(scope="module")
def ranks():
    """Four processes; two of them are a group of their own."""
    started = Ranks(4, timeout=30)
    yield started
    started.stop()


def fine(answers):
    """No rank found anything wrong."""
    for answer in answers:
        if answer is not None:
            raise answer


def test_slices_equal_one_device(ranks):
    """Guards o, the last state and every gradient: each gain, from lambda_0 and from a state, slices of any length."""
    fine(ranks(check_all, CASES))


def test_packed_sequences_over_slices(ranks):
    """Guards cu_seqlens: sequences that cross one border, several or none, and ranks that hold none of some."""
    fine(ranks(check_all, PACKED))


def test_single_precision(ranks):
    """Guards the arithmetic in float32."""
    fine(ranks(check_all, [dict(lengths=(9, 3, 70, 1), **LOW | dict(backend="chunk", H=2))]))


@pytest.mark.parametrize("case", KERNELS, ids=range(len(KERNELS)))
def test_the_kernels_over_slices(ranks, case):
    """Guards the kernels' own way: maps and gradients by separate walks, packed sequences, ranks that need little."""
    fine(ranks(check_all, [LOW | case]))


def test_the_kernels_over_many_chunks_and_parts(ranks):
    """Guards what the walks carry from chunk to chunk and from part to part, forward and backward."""
    cases = dict(lengths=(33, 18)), dict(lengths=(20, 17), packed=[0, 18, 36, 37])
    for case in cases:  # the interpreter is slow
        fine(ranks(check_small, [LOW | dict(start="state") | case], PIECES))


@pytest.mark.parametrize(("original", "broken"), KERNEL_MUTATIONS, ids=range(len(KERNEL_MUTATIONS)))
def test_a_mutation_of_the_kernels_exchange_is_noticed(ranks, original, broken):
    """Guards the two tests above: each of these mistakes makes one of the ranks complain."""
    answers = ranks(check_all, [LOW | dict(lengths=(2, 3), start="state")], original, broken)
    assert any(isinstance(answer, AssertionError) for answer in answers)
    assert all(answer is None or isinstance(answer, AssertionError) for answer in answers), answers


def test_ranks_that_need_other_gradients(ranks):
    """Guards against a wait for ever: ranks whose inputs or losses lead to one exchange alone still come to both."""
    fine(ranks(check_all, [dict(lengths=(3, 1, 6, 2), only=("v", "u", "q", "beta"), gated=True)]))
    fine(ranks(check_all, [dict(lengths=(3, 4), only=("q", "u")), dict(lengths=(3, 4), apart=True, R=2)]))


def test_a_copy_as_it_is_passes(ranks):
    """Guards the tests below: a copy without a mutation satisfies the same checks."""
    fine(ranks(check_all, [CASES[1]], "states = [S]", "states = [S]"))


@pytest.mark.parametrize(("original", "broken"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_mutation_is_noticed(ranks, original, broken):
    """Guards the checks above: each of these mistakes makes one of the ranks complain."""
    answers = ranks(check_all, [CASES[1]], original, broken)
    assert any(isinstance(answer, AssertionError) for answer in answers)
    assert all(answer is None or isinstance(answer, AssertionError) for answer in answers), answers


@pytest.mark.parametrize(
    ("change", "words"),
    (
        (dict(width=3), "K = 3; expected 4"),
        (dict(dtype=torch.float64), "dtype = torch.float64; expected torch.float32"),
        (dict(gain="interpolate"), "gain = interpolate; expected unit"),
        (dict(grad=True), "gradients = recorded; expected not recorded"),
        (dict(lambda_0=0.3), "the sum of |M| at the start"),
        (dict(initial_state=ops.start_state(2, 2, 3, 4, 0.7)), "the sum of |M| at the start"),
    ),
)
def test_a_rank_that_does_not_fit_is_named_on_all(ranks, change, words):
    """Guards exchange 0: every rank says which one differs, and in what; and all can go on afterwards."""
    answers = ranks(call, {2: change})
    assert answers == [answers[0]] * 4
    assert answers[0].startswith("ValueError: rank 2 has ") and words in answers[0]
    assert ranks(call, {}) == ["no error"] * 4


def test_a_rank_that_refuses_its_arguments_keeps_nobody_waiting(ranks):
    """Guards the others where one rank's own checks fail: it says why, they say who."""
    for wrong in (dict(beta=torch.full((2, 3, 2), 2.0)), dict(gain="all"), dict(k=3)):
        answers = ranks(call, {1: wrong})
        assert "expected" in answers[1]
        assert [a.split(";")[0] for a in answers[:1] + answers[2:]] == [
            "ValueError: rank 1 was called with arguments that do not fit"
        ] * 3


@pytest.mark.parametrize("how", ("ends", "is late"))
def test_a_lost_rank_is_an_error_and_no_hang(how):
    """Guards the wait: where a rank ends, or does not come in time, the other says so within the group's timeout."""
    ranks = Ranks(2, LATE)
    try:
        ranks.start(lose, how)
        words, seconds = ranks.answer(0)
        assert words.startswith("rank 0 of 2 lost the others")
        assert seconds < 3 * LATE  # before the late one comes
    finally:
        ranks.stop()


@pytest.mark.parametrize("group", (3, "nccl", object()))
def test_without_process_groups(group):
    """Guards the first mistake that one makes: a group, but none was begun."""
    x = torch.ones(1, 2, 1, 3)
    with pytest.raises(ValueError, match="init_process_group"):
        ops.vla(x, x, x, x, group=group)
