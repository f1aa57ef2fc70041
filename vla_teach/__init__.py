"""vla_teach: the small package under the book "Variational Linear Attention, from least squares to the GPU".

The names below need NumPy alone; plotly, ipywidgets, sympy and scikit-learn load where they are used.
Start reading at `vla_teach.reference`.
"""

from importlib import import_module

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


def __getattr__(name):
    """Load a name when it is asked for, so that `python -m vla_teach.doctor` runs where even NumPy is missing."""
    if name not in __all__:
        raise AttributeError(f"module 'vla_teach' has no attribute {name!r}")
    home = "vla_teach.chunkwise" if name == "vla_chunk" else "vla_teach.reference"
    return getattr(import_module(home), name)
