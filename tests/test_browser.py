"""The sliders of the lessons, in JupyterLab as a student sees it, in a real browser."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

if os.environ.get("CI"):  # there it must run, and fail if it cannot
    from playwright import sync_api
else:
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
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
FINISHED = """error => document.querySelector(error) || [
    ...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
].every(prompt => /\\d/.test(prompt.textContent))"""
CHANGED = """([pictures, before]) => {
    const last = [...document.querySelectorAll(pictures)].at(-1);
    return last && last.src != before;
}"""
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


STUDIO = ROOT / "notebooks/05_style_studio.ipynb"
SHOW_STUDIO = ("still", "studio")
WIDGETS = re.compile(r"\binteract(ive_output)?\(")
# What the sliders show is painted in two steps at each size here: the sliders are what is tested.
SKETCH = """
import nst_helpers as nst
optimize = nst.optimize
nst.optimize = lambda *args, steps=2, **options: optimize(*args, steps=min(steps, 2), **options)
"""


def interactive_notebooks():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        if any(WIDGETS.search(cell.source) for cell in cells if cell.cell_type == "code"):
            yield path


def names(table):
    """Return the global names that a cell uses, and those that it defines."""
    used, defined = set(), set()
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            used.add(symbol.get_name())
        if table.get_type() == "module" and (symbol.is_assigned() or symbol.is_imported()):
            defined.add(symbol.get_name())
    for child in table.get_children():
        used |= names(child)[0]
    return used, defined


def with_widgets(path):
    """Return the notebook with no cells but its widgets and those that define what they use."""
    notebook = nbformat.read(path, as_version=4)
    cells, kept, wanted = [c for c in notebook.cells if c.cell_type == "code"], [], set()
    for cell in reversed(cells):
        used, defined = names(symtable.symtable(cell.source, cell.id, "exec"))
        if WIDGETS.search(cell.source) or defined & wanted:
            kept.insert(0, cell)
            wanted = (wanted | used) - defined
    if path == STUDIO:  # its setup is the panel, and the other two cells show it
        kept = [c for c in cells if "setup" in c.metadata.get("tags", ()) or c.id in SHOW_STUDIO]
    else:
        kept.insert(1, nbformat.v4.new_code_cell(SKETCH))
    for cell in kept:
        cell.outputs, cell.execution_count = [], None
    notebook.cells = kept
    return notebook


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a copy of the repository; gives the address to open."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "images", folder / "images")
    (folder / "notebooks").mkdir()
    for path in {STUDIO, *interactive_notebooks()}:
        nbformat.write(with_widgets(path), folder / "notebooks" / path.name)
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
    recipe = (ROOT / "Makefile").read_text().partition("\nlab:")[2].partition("\n\n")[0]
    command += [word for word in shlex.split(recipe) if word.startswith("--ServerApp.")]
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

    def open_at(path):
        return f"{address}/lab/tree/notebooks/{path.name}?reset&token=secret"

    open_at.folder = folder
    yield open_at
    server.terminate()
    server.wait(30)
    log.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


def run_all_cells(page, address):
    """Open a notebook and run it, as a student would with the menu."""
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_timeout(1000)  # the session is ready a moment after the kernel
    # unfolded, for a folded cell shows no number
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:show-all-cell-code')")
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    # Between two cells the kernel is idle for a moment, too: all of them must have their number.
    page.wait_for_function(FINISHED, arg=ERROR, timeout=120_000)
    page.wait_for_selector(IDLE, timeout=60_000)
    assert page.locator(ERROR).count() == 0


@pytest.mark.parametrize("path", list(interactive_notebooks()), ids=lambda path: path.stem)
def test_controls_change_the_picture(lab, browser, path):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    run_all_cells(page, lab(path))

    def changes_after(action):
        before = page.locator(PICTURE).last.get_attribute("src")
        action()
        page.wait_for_function(CHANGED, arg=[PICTURE, before])

    sliders, menus = page.locator("[role=slider]"), page.locator(".widget-dropdown select")
    assert sliders.count() + menus.count() > 0
    for slider in sliders.all():
        slider.scroll_into_view_if_needed()
        value, highest = (slider.get_attribute(f"aria-value{x}") for x in ("now", "max"))
        key = "ArrowLeft" if value == highest else "ArrowRight"
        changes_after(partial(slider.press, key))
    for menu in menus.all():
        values = menu.locator("option").all_inner_texts()
        chosen = menu.evaluate("menu => menu.selectedIndex")
        changes_after(partial(menu.select_option, label=values[(chosen + 1) % len(values)]))
    labels = page.locator(".jupyter-widgets .widget-label").all_inner_texts()
    assert any(re.search(r"\w", label) for label in labels)
    (ROOT / "out").mkdir(exist_ok=True)
    page.screenshot(path=ROOT / "out" / f"{path.stem}.png")
    page.close()


PLACE = """(image, panel) => {
    const [inner, outer] = [image, panel].map(part => part.getBoundingClientRect());
    return [inner.top - outer.top, inner.left - outer.left, inner.width, inner.height];
}"""
WATCH = """image => {
    window.frames = 0;
    new MutationObserver(() => window.frames++).observe(
        image, {attributes: true, attributeFilter: ["src"]});
}"""


def test_the_studio(lab, browser):
    """What a student does: start, turn knobs, pause, save, upload, take a recipe, reset."""
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    run_all_cells(page, lab(STUDIO))
    canvas = page.locator(".jupyter-widgets img").nth(2)  # after the two thumbnails
    panel = page.locator(".jp-OutputArea-output", has=canvas)
    sliders, numbers = panel.locator("[role=slider]"), panel.locator("input[type=number]")
    assert sliders.count() == numbers.count() == 8
    style = page.get_by_label("style β")  # as a screen reader finds it
    assert (style.input_value(), numbers.nth(3).input_value()) == ("25", "0.2")
    canvas.scroll_into_view_if_needed()
    canvas.evaluate(WATCH)

    def place():
        return canvas.evaluate(PLACE, panel.element_handle())

    before = place()

    def press(name):
        panel.get_by_role("button", name=name, exact=True).click()

    def frames():
        return page.evaluate("window.frames")

    def more(count):
        page.wait_for_function(f"window.frames >= {frames() + count}", timeout=120_000)

    def says(text, seconds=20):
        panel.get_by_text(text).wait_for(timeout=1000 * seconds)

    says("paused · step 1")
    assert frames() == 0
    press("Start")
    press("Start")
    page.wait_for_timeout(4000)
    assert 0 < frames() < 4 * 8.5 + 3
    sliders.nth(1).press("ArrowRight")
    page.wait_for_function("box => box.value != '25'", arg=style.element_handle())
    style.fill("25.1")
    style.press("Enter")
    more(40)
    assert style.input_value() == "25.1"

    press("Pause")
    says("paused · step")
    paused = frames()
    page.wait_for_timeout(1000)
    assert frames() == paused
    (ROOT / "out").mkdir(exist_ok=True)
    panel.screenshot(path=ROOT / "out/studio.png")
    for count in (1, 2):
        press("Save")
        says(f"saved as notebooks/paintings/temple-starry_night-00{count}.png")
    with Image.open(lab.folder / "notebooks/paintings/temple-starry_night-001.png") as saved:
        assert json.loads(saved.text["settings"])["weights"]["style"] == 25.1
        assert max(saved.size) == 192

    def upload(file):
        with page.expect_file_chooser() as chooser:
            panel.get_by_role("button", name="your own").first.click()
        chooser.value.set_files(file)

    upload({"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    says("notes.jpg is not used")
    large = lab.folder / "large.png"  # as new cameras make them
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 15e6
    upload(large)
    says("large.png is in the menu", 60)
    press("Start")
    photographs = page.get_by_label("content", exact=True)
    for _ in range(2):  # the same file again is chosen again
        upload(ROOT / "images/content/coffee.jpg")
        says("coffee.jpg is in the menu")
        says("painting · step")
        assert photographs.input_value() == "coffee.jpg"
        photographs.select_option(label="cat")
        press("Save")
        says("saved as notebooks/paintings/cat-")
    recipe = json.loads((ROOT / "images/recipes.json").read_text(encoding="utf-8"))["great_wave"]
    press(recipe["title"])
    says(recipe["why"])
    press("Reset")
    press("Pause")
    says("paused · step")
    press("20 steps here")
    panel.get_by_text(re.compile(r"paused · step 2\d")).wait_for()
    assert place() == before  # nothing has moved

    press("Start")
    more(3)
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.wait_for_timeout(1000)
    more(3)  # it paints on
    page.close()
