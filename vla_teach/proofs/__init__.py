"""Machine checks of what the book claims: one module a chapter states and checks its labelled statements.

`words` computes with matrices of any size, `statement` says what a check is. `STATEMENTS` maps each label to its
Statement, in the order of the book.
"""

from vla_teach.proofs import (
    chunk,
    conditioning,
    distributed,
    forgetting,
    gradients,
    inverse,
    least_squares,
    penalty,
    probability,
    recurrence,
    scan,
    stability,
    three_steps,
)
from vla_teach.proofs.statement import check

CHAPTERS = {
    forgetting: "derivation/forgetting",
    least_squares: "derivation/least_squares",
    inverse: "derivation/sherman_morrison",
    three_steps: "derivation/three_steps",
    probability: "derivation/probability",
    recurrence: "reference/recurrence",
    penalty: "reference/penalty",
    stability: "reference/stability",
    conditioning: "reference/conditioning",
    scan: "kernel/scan",
    chunk: "kernel/chunk",
    gradients: "kernel/gradients",
    distributed: "kernel/distributed",
}
STATEMENTS = {statement.label: statement for module in CHAPTERS for statement in module.STATEMENTS}


def report(*labels: str) -> None:
    """Check these statements and print a line for each. Raises Refuted for one that fails."""
    for label in labels:
        print(check(STATEMENTS[label]))
