"""The sliders of the lessons, in JupyterLab as a student sees it, in a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"),
    reason="needs Chromium (on Debian and Ubuntu: sudo apt install chromium)",
)
IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
PICTURE = ".jupyter-widgets img, .jupyter-widgets-output-area img"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def interactive_notebooks():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        if any("ipywidgets" in cell.source for cell in cells if cell.cell_type == "code"):
            yield path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a copy of the repository; gives the address to open."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "images"):
        shutil.copytree(ROOT / name, folder / name)
    settings = {  # without windowing "none", cells off the screen do not exist
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false"},
    }
    for name, values in settings.items():
        file = folder / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=secret", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    command += [f"--LabApp.user_settings_dir={folder / 'settings'}"]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / "config")}
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api?token=secret", timeout=1).close()
            break
        except OSError:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
    yield lambda path: f"{address}/lab/tree/notebooks/{path.name}?reset&token=secret"
    server.terminate()
    server.wait(30)
    log.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("path", list(interactive_notebooks()), ids=lambda path: path.stem)
def test_controls_change_the_picture(lab, browser, path):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(lab(path))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_timeout(1000)  # the session is ready a moment after the kernel
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(PICTURE, timeout=800_000)
    page.wait_for_selector(IDLE, timeout=800_000)
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0

    def picture():
        return page.locator(PICTURE).last.get_attribute("src")

    def changes_after(action):
        before, start = picture(), time.perf_counter()
        action()
        while time.perf_counter() - start < 5:
            page.wait_for_timeout(50)
            if picture() != before:
                return True
        return False

    sliders, menus = page.locator("[role=slider]"), page.locator(".widget-dropdown select")
    assert sliders.count() + menus.count() > 0
    for index in range(sliders.count()):
        slider = sliders.nth(index)
        slider.scroll_into_view_if_needed()
        assert changes_after(lambda s=slider: s.press("ArrowRight")) or changes_after(
            lambda s=slider: s.press("ArrowLeft")
        ), f"slider {index} changes nothing"
    for index in range(menus.count()):
        menu = menus.nth(index)
        values = menu.locator("option").all_inner_texts()
        chosen = menu.evaluate("menu => menu.selectedIndex")
        other = values[(chosen + 1) % len(values)]
        assert changes_after(lambda m=menu, o=other: m.select_option(label=o)), values
    labels = page.locator(".jupyter-widgets .widget-label").all_inner_texts()
    assert any(re.search(r"\w", label) for label in labels)
    (ROOT / "out").mkdir(exist_ok=True)
    page.screenshot(path=ROOT / "out" / f"{path.stem}.png")
    page.close()
