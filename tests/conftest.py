"""What tests share. Browser and server live for a file, not a session, as other tests need their own event loop."""

import pytest
from browser import chromium, pages_folder

from vla_teach.site.offline import serving


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages():
    """The folder of the built book."""
    return pages_folder()


@pytest.fixture(scope="module")
def site(pages):
    """The address at which the built book is served."""
    with serving(pages) as address:
        yield address


@pytest.fixture
def one_core(monkeypatch):
    """For matrices too small to share between cores; and `ops.CHUNK`, which some checks change, is put back."""
    import torch

    from vla_teach import ops

    monkeypatch.setattr(ops, "CHUNK", ops.CHUNK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def made_speeds():
    """Results of two models that come to their score at known steps; one seed of DeltaNet never does."""
    come = {"vla": (10, 20, 10), "delta": (30, 30, None)}
    runs = [
        dict(label=label, rate=0.1, seed=seed, history=[dict(step=x, validation=float(x == at)) for x in (10, 20, 30)])
        for label, steps in come.items()
        for seed, at in enumerate(steps)
    ]
    return dict(settings=dict(steps=40), metric="accuracy", runs=runs, models={x: dict(rate=0.1) for x in come})
