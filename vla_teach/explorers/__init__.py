"""Pictures with sliders. In JupyterLab they run this package; on a static page `book/_static/explorer.js` takes over.

An `Explorer` (see `kit`) is a list of controls and presets, written once, here: the page's script finds them in the
cell's output. Its view is a plain function from parameters to numbers, which `book/_static/memory.js` has too, so the
two can be compared; `draw` says where the numbers go in the figure, `summary` tells the picture in a sentence.

In JupyterLab every function below takes new ends for its sliders, as in `norms(T=20_000, K=256)`, and `norms` and
`penalty` take your own keys and values, as in `norms(own=(k, v))`.
"""

from vla_teach.explorers.attack import ADVERSARY
from vla_teach.explorers.chunks import CHUNKS
from vla_teach.explorers.digit_stream import DIGITS
from vla_teach.explorers.memories import NORMS, PENALTY, with_own
from vla_teach.explorers.one_step import STEP
from vla_teach.explorers.readback import RECALL
from vla_teach.explorers.turning import ANGLE

EXPLORERS = {explorer.name: explorer for explorer in (PENALTY, NORMS, RECALL, ADVERSARY, ANGLE, STEP, CHUNKS, DIGITS)}


def penalty(own=None, **highs):
    """The penalty explorer. own: (k, v) or (k, v, u), see `with_own`; highs: see `Explorer.wider`, as for all below."""
    return (with_own(PENALTY, *own) if own else PENALTY).wider(**highs).show(live=not own)


def norms(own=None, **highs):
    """The norms explorer. own: (k, v) or (k, v, u), see `with_own`."""
    return (with_own(NORMS, *own) if own else NORMS).wider(**highs).show(live=not own)


def recalled(**highs):
    """The recall explorer; the number n cannot go further than 64."""
    return RECALL.wider(**highs).show()


def adversary():
    """The adversary explorer."""
    return ADVERSARY.show()


def angle(**highs):
    """The explorer of the angle between keys and writes."""
    return ANGLE.wider(**highs).show()


def step():
    """The explorer of a whole step's Jacobian."""
    return STEP.show()


def chunked(**highs):
    """The explorer of chunks: which token needs which, and when it gets it."""
    return CHUNKS.wider(**highs).show()


def digits():
    """The explorer of a memory that reads handwritten digits."""
    return DIGITS.show()
