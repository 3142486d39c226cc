"""What several test files need: the network, small pictures, and a user without rights."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

import nst_helpers as nst

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def vgg():
    return nst.load_vgg19()


@pytest.fixture(scope="session")
def temple():
    return nst.load_image(ROOT / "images/content/temple.jpg", 96)


@pytest.fixture(scope="session")
def starry_night():
    return nst.load_image(ROOT / "images/style/starry_night.jpg", 96)


@pytest.fixture
def nobody(tmp_path):
    """A context in which files are used by one who owns nothing, even if root runs the tests."""

    @contextmanager
    def as_nobody():
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    for folder in (tmp_path, *list(tmp_path.parents)[:3]):  # pytest's own, closed to others
        if (os.geteuid() == 0 and "pytest" in folder.name) or folder == tmp_path:
            folder.chmod(0o755)
    return as_nobody
