"""What several test files need: the network, small pictures, and a user without rights."""

import os
from contextlib import contextmanager
from functools import cache
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
def avg_vgg():
    return nst.load_vgg19(pooling="avg")


@pytest.fixture(scope="session")
def picture():
    """Return the function (name, size) that reads a picture of images/content or images/style."""

    @cache
    def read(name, size):
        (path,) = ROOT.glob(f"images/[cs]*/{name}.jpg")
        return nst.load_image(path, size)

    return read


@pytest.fixture(scope="session")
def temple(picture):
    return picture("temple", 96)


@pytest.fixture(scope="session")
def starry_night(picture):
    return picture("starry_night", 96)


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
