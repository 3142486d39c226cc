"""What several test files need: the network and small pictures."""

from functools import cache
from pathlib import Path

import pytest

import nst_helpers as nst
from nst_studio import Live

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(autouse=True)
def rest():
    """Let no studio paint on after the test that made it; notebook 05's first cell makes one."""
    yield
    Live(None)  # takes the worker


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
