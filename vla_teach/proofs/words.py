"""Algebra with matrices of any size: sums of words in symbols that do not commute, and rules that rewrite words.

A word is a product such as M A u. A rule (pattern, value) replaces the pattern wherever it stands inside a word:
(M A, 1) says that A is the inverse of M; (u^T A u, s) says that this product is the number s. An identity holds for
every dimension when its two sides, expanded and rewritten, differ by nothing.

Names carry the transpose: the transpose of the symbol S is S^T, and the other way round.
"""

import sympy as sp


def matrices(names):
    """Symbols that do not commute, for matrices and vectors of any size: matrices("M A u u^T")."""
    return sp.symbols(names, commutative=False)


def factors(word):
    """The matrix factors of a product, powers written out: M^2 u -> (M, M, u). Refuses any other power."""
    out = []
    for factor in word.args_cnc()[1]:
        base, power = factor.as_base_exp()
        if not (power.is_Integer and power > 0):
            raise ValueError(
                f"{factor} is no word; expected whole powers above 0, and a symbol of its own for an inverse"
            )
        out += [base] * int(power)
    return tuple(out)


def rewrite(expression: sp.Expr, rules: list[tuple[sp.Expr, sp.Expr]]) -> sp.Expr:
    """The expression expanded, every pattern replaced by its value until none is left.

    Raises ValueError for a pattern that is no word.
    """
    for pattern, _ in rules:
        if pattern.args_cnc()[0] or not factors(pattern):
            raise ValueError(f"the pattern {pattern} is no word; expected a product of matrix symbols alone")
    rules = [(factors(pattern), value) for pattern, value in rules]
    todo, done = [sp.expand(expression)], {}
    while todo:
        for term in sp.Add.make_args(todo.pop()):
            number, word = sp.Mul(*term.args_cnc()[0]), factors(term)
            hits = ((i, p, value) for p, value in rules for i in starts(word, p))
            hit = next(hits, None)
            if hit is None:
                done[word] = done.get(word, 0) + number
            else:
                i, p, value = hit
                replaced = sp.Mul(*word[:i]) * value * sp.Mul(*word[i + len(p) :])
                todo.append(sp.expand(number * replaced))
    return sp.Add(*(sp.simplify(number) * sp.Mul(*word) for word, number in done.items()))


def starts(word, pattern):
    """Places in a word at which the pattern begins."""
    return [i for i in range(len(word) - len(pattern) + 1) if word[i : i + len(pattern)] == pattern]


def transpose(expression, symmetric=()):
    """The transpose of a sum of words: each word backwards, each symbol transposed but those in `symmetric`."""

    def flip(symbol):
        name = symbol.name
        return symbol if symbol in symmetric else matrices(name[:-2] if name.endswith("^T") else f"{name}^T")

    terms = sp.Add.make_args(sp.expand(expression))
    return sp.Add(*(sp.Mul(*term.args_cnc()[0], *map(flip, reversed(factors(term)))) for term in terms))


def trace(expression, symmetric=(), numbers=()):
    """The trace of a sum of square words, as a sum of numbers: tr(X Y) = tr(Y X) and tr(X^T) = tr(X), so of all words
    with one trace the first in the alphabet stands for them.

    A term without a matrix is a number already; the trace of the identity, which depends on the size, is refused.
    numbers: rules whose patterns are numbers, such as (k^T k, 1).
    """
    out = 0
    for term in sp.Add.make_args(sp.expand(expression)):
        number, word = sp.Mul(*term.args_cnc()[0]), factors(term)
        if word:
            turned = [word[i:] + word[:i] for i in range(len(word))]
            turned += [factors(transpose(sp.Mul(*other), symmetric)) for other in turned]
            shorter = next((w for w in turned if any(starts(w, factors(p)) for p, _ in numbers)), None)
            if shorter is None:
                value = sp.Symbol(f"tr({' '.join(min([symbol.name for symbol in other] for other in turned))})")
            else:
                value = trace(rewrite(sp.Mul(*shorter), numbers), symmetric, numbers)
        else:
            value = 1
        out += number * value
    return sp.expand(sp.simplify(out))
