"""Every kernel that the tests start, nbval's included, runs with the network refused."""

import os
import shutil
import tempfile
from pathlib import Path


def pytest_configure(config):
    config.ipython_folder = tempfile.TemporaryDirectory(prefix="ipython-")
    startup = Path(config.ipython_folder.name, "profile_default", "startup")
    startup.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tests") / "refuse_network.py", startup)
    os.environ["IPYTHONDIR"] = config.ipython_folder.name  # kernels inherit it


def pytest_unconfigure(config):
    config.ipython_folder.cleanup()
