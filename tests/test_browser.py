"""The sliders of the lessons, and the studio, in JupyterLab as a student sees it."""

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
CONTROL = ROOT / "notebooks/07_control.ipynb"
SMALL_STUDIO = ("Studio()", "Studio(sizes=(64, 96), finish=160)")  # to finish in seconds
DRAWN = """drawn = mask_of(drawing).nonzero(as_tuple=True)
print([round(y.item(), -1) for x in drawn if len(x) for y in x.aminmax()])"""
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


def with_widgets(path, widgets=WIDGETS):
    """Return the notebook with no cells but its widgets and those that define what they use."""
    notebook = nbformat.read(path, as_version=4)
    cells, kept, wanted = [c for c in notebook.cells if c.cell_type == "code"], [], set()
    for cell in reversed(cells):
        used, defined = names(symtable.symtable(cell.source, cell.id, "exec"))
        if widgets.search(cell.source) or defined & wanted:
            kept.insert(0, cell)
            wanted = (wanted | used) - defined
    kept.insert(1, nbformat.v4.new_code_cell(SKETCH))
    notebook.cells = kept
    return notebook


def write(notebook, path):
    """Write a notebook as if it had never been run."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a copy of the repository; gives the address to open."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "images", folder / "images")
    (folder / "notebooks").mkdir()
    for path in interactive_notebooks():
        write(with_widgets(path), folder / "notebooks" / path.name)
    notebook = with_widgets(CONTROL, re.compile(r"^drawing = |^def mask_of"))
    notebook.cells.append(nbformat.v4.new_code_cell(DRAWN))
    write(notebook, folder / "notebooks/drawing.ipynb")
    notebook = nbformat.read(STUDIO, as_version=4)
    write(notebook, folder / "notebooks" / STUDIO.name)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
    notebook.cells[0].source = notebook.cells[0].source.replace(*SMALL_STUDIO)
    write(notebook, folder / "notebooks/small.ipynb")
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

    def open_at(name):
        return f"{address}/lab/tree/notebooks/{name}?reset&token=secret"

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
    run_again(page)


def run_again(page):
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
    run_all_cells(page, lab(path.name))

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


def test_a_mask_is_drawn_with_the_mouse(lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    run_all_cells(page, lab("drawing.ipynb"))
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    corner = canvas.bounding_box()
    page.mouse.move(corner["x"] + 100, corner["y"] + 150)
    page.mouse.down()
    page.mouse.move(corner["x"] + 300, corner["y"] + 250, steps=5)
    page.mouse.up()
    page.mouse.move(corner["x"] + 500, corner["y"] + 350)  # with its button up
    page.locator(".jp-CodeCell .jp-InputArea-editor").last.click()
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-cell')")
    # 60 pixels wide: rows 120 to 280, columns 70 to 330
    page.get_by_text("[120, 280, 70, 330]").wait_for()
    (ROOT / "out").mkdir(exist_ok=True)
    canvas.screenshot(path=ROOT / "out/drawing.png")
    page.close()


WATCH = """image => {
    window.frames = 0;
    new MutationObserver(() => window.frames++).observe(
        image, {attributes: true, attributeFilter: ["src"]});
}"""
REACTION = """([handle, key]) => new Promise(done => {
    const image = document.querySelector(".nst-canvas"), start = performance.now();
    new MutationObserver((_, observer) => {
        observer.disconnect();
        done(performance.now() - start);
    }).observe(image, {attributes: true, attributeFilter: ["src"]});
    handle.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
})"""
SCROLLED = """panel => [...panel.querySelectorAll("*")].filter(part =>
    /auto|scroll/.test(getComputedStyle(part).overflow) &&
    (part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1)
).length"""
PLACE = """() => {
    const [inner, outer] = [".nst-canvas", ".nst"].map(part =>
        document.querySelector(part).getBoundingClientRect());
    return [inner.top - outer.top, inner.left - outer.left, inner.width, inner.height];
}"""
NAME = """() => {
    const part = document.activeElement, label = part.labels?.[0];
    return part.getAttribute("aria-label") || (label || part).textContent.trim();
}"""


class Hand:
    """What the tests do to the studio on a page, and what they see of it."""

    def __init__(self, page):
        self.page, self.panel = page, page.locator(".nst")
        self.canvas = page.locator(".nst-canvas")
        page.wait_for_function("document.querySelector('.nst-canvas')?.naturalWidth > 0")
        page.get_by_role("slider", name="style weight (β)").wait_for()
        self.canvas.evaluate(WATCH)

    def press(self, name):
        self.panel.get_by_role("button", name=name, exact=True).click()

    def says(self, text, seconds=30):
        self.panel.get_by_text(text).first.wait_for(timeout=1000 * seconds)

    def frames(self):
        return self.page.evaluate("window.frames")

    def more(self, count):
        enough = f"window.frames >= {self.frames() + count}"
        self.page.wait_for_function(enough, timeout=60_000)

    def box(self, name):
        return self.panel.get_by_role("spinbutton", name=name)

    def choose(self, name):
        self.panel.get_by_role("radio", name=name).first.check(force=True)

    def upload(self, kind, file):
        with self.page.expect_file_chooser() as chooser:
            self.panel.get_by_role("button", name=f"own {kind}").click()
        chooser.value.set_files(file)


def test_play_in_the_studio(lab, browser):
    """The whole notebook is run, and then the panel is played with."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    run_all_cells(page, lab(STUDIO.name))
    hand = Hand(page)
    place = page.evaluate(PLACE)
    (ROOT / "out").mkdir(exist_ok=True)
    hand.choose("great_wave")
    hand.more(20)
    hand.press("Keep")
    hand.choose("starry_night")
    hand.says("384 px", 60)
    hand.more(45)
    hand.press("Keep")
    page.wait_for_timeout(500)
    hand.panel.screenshot(path=ROOT / "out/studio.png")  # images/studio.jpg is made of it
    sliders = {name: page.get_by_role("slider", name=name) for name in ("style", "smooth", "large")}
    times = []
    for slider in list(sliders.values()) * 2:
        times.append(page.evaluate(REACTION, [slider.element_handle(), "ArrowRight"]))
        hand.more(2)
    print(f"from a key to the next picture: {np.median(times):.0f} ms, at most {max(times):.0f}")
    for slider in sliders.values():  # three fast drags
        handle = slider.bounding_box()
        page.mouse.move(handle["x"] + 8, handle["y"] + 8)
        page.mouse.down()
        for way in (200, -300, 400):
            page.mouse.move(handle["x"] + way, handle["y"] + 8, steps=5)
        page.mouse.up()
    for name, highest in {"style": "1000", "smooth": "100", "large": "20"}.items():
        page.wait_for_function(
            "([box, x]) => box.value == x", arg=[hand.box(name).element_handle(), highest]
        )
    hand.more(3)
    hand.press("reset style weight (β)")
    page.wait_for_function("box => box.value == '25'", arg=hand.box("style").element_handle())

    hand.press("Keep")
    # Jupyter handles clicks and values in different threads: the value could overtake the click.
    hand.panel.get_by_role("radio", name="3: temple").wait_for(state="attached")
    hand.box("style").fill("7.5")
    hand.box("style").press("Enter")
    hand.more(3)
    hand.choose("3: temple")
    hand.says("paused")
    page.wait_for_function("box => box.value == '25'", arg=hand.box("style").element_handle())
    hand.press("Paint")
    hand.more(3)
    hand.press("Pause")
    page.wait_for_timeout(1500)  # for the step in progress
    still = hand.frames()
    page.wait_for_timeout(1500)
    assert hand.frames() == still

    for name in ("Paint", "Start over", "Keep", "Save"):  # everything twice
        hand.press(name)
        page.wait_for_timeout(300)
        hand.press({"Paint": "Pause"}.get(name, name))
    hand.panel.get_by_role("button", name="Finish at 1024 px").dblclick()
    hand.says("paused")
    for name in ("Finish at 1024 px", "Stop finishing", "Finish at 1024 px"):
        hand.press(name)
        hand.says("paused" if name == "Stop finishing" else "s left")
    hand.press("Start over")
    hand.more(5)
    assert page.evaluate(PLACE) == place  # nothing has moved

    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.wait_for_timeout(1000)
    hand.more(3)  # it paints on
    page.evaluate("() => document.querySelector('.nst').classList.add('old')")
    run_again(page)
    page.wait_for_selector(".nst:not(.old)")
    hand = Hand(page)
    assert hand.panel.count() == 1
    hand.more(3)
    page.close()


def test_the_keyboard_reaches_everything_and_all_has_a_name(lab, browser):
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    run_all_cells(page, lab("small.ipynb"))
    hand = Hand(page)
    hand.press("Pause")
    (ROOT / "out").mkdir(exist_ok=True)
    for width, height in ((1500, 1000), (1100, 1600)):  # the panel has 1000 and about 700 px
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(500)
        hand.panel.screenshot(path=ROOT / f"out/studio-{width}.png")
        assert hand.panel.evaluate(SCROLLED) == 0
    hand.panel.get_by_role("button", name="Paint", exact=True).focus()
    reached = set()
    for _ in range(60):
        reached.add(page.evaluate(NAME))
        page.keyboard.press("Tab")
        if not page.evaluate("document.activeElement.closest('.nst') != null"):
            break
    wanted = {"Paint", "Start over", "Keep", "Finish at 160 px", "Save", "show photograph, %"}
    wanted |= {"temple", "starry_night", "second painting", "recipe", "start from"}
    wanted |= {"keep the photograph's colours", "paint over the old picture"}
    wanted |= {"large forms (relu5_1)", "reset large forms (relu5_1)", "smoothness (γ)"}
    assert wanted <= reached
    assert "" not in reached
    hand.panel.get_by_role("radio", name="rocket").press("Space")
    assert hand.panel.get_by_role("radio", name="rocket").is_checked()
    hand.says("painting")
    page.close()


def test_finish_save_load_and_upload(lab, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1500, "height": 1000}, accept_downloads=True)
    run_all_cells(page, lab("small.ipynb"))
    hand = Hand(page)
    hand.box("style").fill("33")
    hand.box("style").press("Enter")
    hand.press("Finish at 160 px")
    hand.says("s left")
    hand.says("finished", 60)
    hand.press("Save")
    with page.expect_download() as download:
        hand.panel.get_by_role("link", name="Download").click()
    file = tmp_path / "saved.png"
    download.value.save_as(file)
    with Image.open(file) as picture:
        assert max(picture.size) == 160
        record = json.loads(picture.text["nst"])
    assert record["settings"]["weights"]["style"] == 33
    assert record["path"][0]["weights"]["style"] == 25

    hand.upload("photograph", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    hand.says("a.jpg is not a picture that can be read")
    large = tmp_path / "large.png"  # as new cameras make them
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 15e6
    hand.upload("photograph", large)
    hand.says("large.png is chosen", 60)
    for _ in range(2):  # the same file again is chosen again
        hand.upload("photograph", ROOT / "images/content/hills.jpg")
        hand.says("hills.jpg is chosen")
        radio = hand.panel.get_by_role("radio", name="hills.jpg")
        page.wait_for_function("radio => radio.checked", arg=radio.element_handle())
        hand.choose("cat")
        hand.says("Drag a slider")
    recipe = json.loads((ROOT / "images/recipes.json").read_text())["boats"]
    hand.panel.get_by_label("recipe").select_option(label=recipe["title"])
    hand.says(recipe["why"])
    chosen = f"box => box.value == '{recipe['weights']['style']}'"
    page.wait_for_function(chosen, arg=hand.box("style").element_handle())
    hand.upload("painting", file)
    hand.says("paused")
    page.wait_for_function("box => box.value == '33'", arg=hand.box("style").element_handle())
    assert hand.panel.get_by_role("radio", name="temple", exact=True).is_checked()
    page.close()
