"""`make` installs once and says what a machine lacks; JupyterLab is closed to others.

About five seconds, four of them for starting JupyterLab.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress

import psutil
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
def test_one_clear_line_about_what_is_missing(make, tmp_path, script, message):
    run = make("lab", fake_python(tmp_path, script))
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["lab", "check", "test"])
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


def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except urllib.error.URLError:
        return None, b""


@pytest.fixture
def lab(root, tmp_path):
    """`make lab`, under a user's own settings that would open it to everybody."""
    if not (root / ".venv/ready").exists():
        pytest.skip("make has not installed this environment")
    (tmp_path / "jupyter_server_config.py").write_text("c.ServerApp.ip = '0.0.0.0'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["make", "lab", f"ARGS=--no-browser --port {port}"],
        cwd=root,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    address = None
    for line in process.stdout:
        if match := re.search(rf"http://127\.0\.0\.1:{port}/\S*\?token=(\w+)", line):
            address = f"http://127.0.0.1:{port}", match[1]
            break
    while process.poll() is None and ask(f"http://127.0.0.1:{port}/api")[0] is None:
        time.sleep(0.2)  # the address is printed a moment before it is served
    yield process, address
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)


def test_lab_keeps_its_token_and_listens_on_this_machine_only(lab):
    process, (address, token) = lab
    assert len(token) >= 40
    assert ask(f"{address}/api/contents")[0] == 403
    assert ask(f"{address}/api/contents?token=0{token}")[0] == 403
    status, contents = ask(f"{address}/api/contents?token={token}")
    assert status == 200
    assert "notebooks" in [entry["name"] for entry in json.loads(contents)["content"]]
    listening = set()
    for member in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # JupyterLab's helpers come and go
            connections = member.net_connections()
            listening |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
