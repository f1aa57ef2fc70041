"""vla_teach: the small package under the book "Variational Linear Attention, from least squares to the GPU".

`import vla_teach` needs NumPy alone; plotly, ipywidgets, sympy and scikit-learn load where they are used.
Start reading at `vla_teach.reference`.
"""

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

__version__ = "0.1.0"

__all__ = [
    "State",
    "attention_map",
    "delta_rule",
    "exact_least_squares",
    "linear_attention",
    "softmax_attention",
    "vla_chunk",
    "vla_recurrent",
]
