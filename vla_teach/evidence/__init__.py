"""Evidence that needs no training: measurements of the memories themselves, each made again by one command.

    python -m vla_teach.evidence run NAME

Every measurement is a module of this package with four names:

    ABOUT     one line about it
    MINUTES   how long size full takes on two cores of a laptop
    SIZES     dict(smoke=settings, full=settings), plain data; smoke takes seconds, and the tests run it
    pieces    pieces(settings) -> {name: function of nothing that returns plain data}, independent of each other

Trained models are in `vla_teach.experiments`. It needs PyTorch and tqdm.
"""

MEASUREMENTS = ("learned", "readback", "real_keys", "streams")  # modules of this package
