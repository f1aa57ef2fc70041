"""One browser and one server for all tests of a file; not of a session, as other tests need their own event loop."""

import pytest
from browser import chromium, pages_folder, serving


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
