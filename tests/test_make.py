"""The two commands: they install once, and say in one line what a machine lacks."""

import os
import shutil
import subprocess
import time

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def make(root, tmp_path):
    """Run make in a folder with nothing but the Makefile and pyproject.toml."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)

    def run(*arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        return subprocess.run(
            ["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    return run


def fake_python(folder, script):
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"PYTHON={path}"


@pytest.mark.parametrize("target", ["lab", "test"])
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 127", "No Python found"),
        (
            'case "$2" in *version_info*) exit 1;; *) echo "Python 3.8.1";; esac',
            "Python 3.8.1 is too",
        ),
        ('case "$2" in *ensurepip*) exit 1;; esac', "sudo apt install python3-venv"),
    ],
)
def test_one_clear_line_about_what_is_missing(make, tmp_path, target, script, message):
    run = make(target, fake_python(tmp_path, script))
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["lab", "test"])
def test_it_installs_once_and_again_for_new_dependencies(make, tmp_path, target):
    assert "pip install" in make("-n", target).stdout
    (tmp_path / ".venv").mkdir()
    ready = tmp_path / ".venv/ready"
    ready.touch()
    assert "pip install" not in make("-n", target).stdout
    later = time.time() + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "pip install" in make("-n", target).stdout


def test_lab_passes_its_arguments_on(make):
    run = make("-n", "lab", "ARGS=--no-browser --port 8899")
    assert "jupyter lab" in run.stdout
    assert run.stdout.rstrip().endswith("--no-browser --port 8899")
