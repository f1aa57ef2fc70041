"""The tasks on which memories are trained and tested, all asked alike.

    task = TASKS["mqar"]                        # or replace(TASKS["mqar"], length=512), or MQAR(length=512)
    x, y, mask, W = task.batch(32, seed=0)      # see `Batch`
    print(task.show(task.batch(32, seed=0), 0))

A task says what a model for it looks like: task.kind, inputs, vocab, classes, length (see `Task`). Its settings are
the fields of its class. Every task needs NumPy alone, but "digits", which needs scikit-learn. The official files of the
Long Range Arena are read by `vla_teach.tasks.lra`.
"""

from vla_teach.tasks.base import NOT_ASKED, Batch, Task
from vla_teach.tasks.copying import Copy, DelayedRecall
from vla_teach.tasks.digits import DigitSequences
from vla_teach.tasks.incontext import InContext
from vla_teach.tasks.listops import ListOps
from vla_teach.tasks.pathfinder import Pathfinder
from vla_teach.tasks.recall import MQAR, StackedMQAR
from vla_teach.tasks.relations import Relations

TASKS = {
    "copy": Copy(),
    "delayed recall": DelayedRecall(),
    "mqar": MQAR(),
    "mqar stacked": StackedMQAR(),
    "in-context recall": InContext(),
    "in-context regression": InContext(rule="regression", layout="interleaved", queries=0, condition=100.0),
    "relations": Relations(),
    "listops": ListOps(),
    "pathfinder": Pathfinder(),
    "digits": DigitSequences(),
}

__all__ = [
    "MQAR",
    "NOT_ASKED",
    "TASKS",
    "Batch",
    "Copy",
    "DelayedRecall",
    "DigitSequences",
    "InContext",
    "ListOps",
    "Pathfinder",
    "Relations",
    "StackedMQAR",
    "Task",
]
