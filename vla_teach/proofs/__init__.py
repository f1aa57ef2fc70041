"""Machine checks of what the book claims: one module a chapter states and checks its labelled statements.

`words` computes with matrices of any size, `statement` says what a check is. `STATEMENTS` maps each label to its
Statement, in the order of the book.
"""

from vla_teach.proofs import (
    chunk,
    conditioning,
    forgetting,
    gradients,
    inverse,
    least_squares,
    penalty,
    probability,
    recurrence,
    stability,
    three_steps,
)
from vla_teach.proofs.statement import check

MODULES = (
    forgetting,
    least_squares,
    inverse,
    three_steps,
    probability,
    recurrence,
    penalty,
    stability,
    conditioning,
    chunk,
    gradients,
)
STATEMENTS = {statement.label: statement for module in MODULES for statement in module.STATEMENTS}


def report(*labels):
    """Check these statements and print a line for each. Raises Refuted for one that fails."""
    for label in labels:
        print(check(STATEMENTS[label]))
