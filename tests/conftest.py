"""What several test files need: the network and small pictures."""

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
