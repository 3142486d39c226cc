"""The panel of notebook 05, driven from Python while it paints: the cells that students run."""

import io
import json
import math
import os
import random
import shutil
import threading
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from PIL import Image

import nst_helpers as nst

ROOT = Path(__file__).resolve().parents[1]
CELLS = [
    cell
    for cell in nbformat.read(ROOT / "notebooks/05_style_studio.ipynb", as_version=4).cells
    if "setup" in cell.metadata.get("tags", [])
]


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "nst.Live"]


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.01)


def build():
    """Run the cells that make the panel; returns their names as attributes."""
    names = {"__name__": "__main__"}
    for cell in CELLS:
        exec(compile(cell.source, cell.id, "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    shutil.copytree(ROOT / "images", folder / "images")
    (folder / "notebooks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "notebooks")
        panel = build()
        panel.size.value = 64
        yield panel
        panel.live.pause()
        panel.live.wait(20)


@pytest.fixture
def studio(panel):
    """The panel as it opens, but at 64 px."""
    panel.live.begin, panel.live.show = panel.begin, panel.renew
    for name, (_, box, _) in panel.knobs.items():
        box.value = panel.KNOBS[name][4]
    panel.photos.menu.value, panel.paintings.menu.value = "temple", "starry_night"
    panel.start.value, panel.keep.value, panel.size.value = "matched", False, 64
    panel.live.pause()
    press(panel, "Reset")
    panel.live.wait(20)
    shutil.rmtree("paintings", ignore_errors=True)
    return panel


def press(studio, name):
    (found,) = [x for x in studio.buttons + studio.recipe_buttons if x.description == name]
    found.click()


def number(studio, knob):
    return studio.knobs[knob][1]


def test_the_first_picture_is_the_start(studio):
    with Image.open(io.BytesIO(studio.canvas.value)) as shown:
        assert max(shown.size) == 64
    assert studio.live.step.index == 1
    assert "paused · step 1" in studio.status.value


@pytest.mark.parametrize("by", [0, 1], ids=["slider", "number"])
def test_the_very_next_steps_obey(studio, by):
    seen = []
    studio.live.show = lambda live: seen.append(live.step)
    press(studio, "Start")
    until(lambda: len(seen) > 5)
    before = studio.live.step.index
    studio.knobs["style"][by].value = 200
    after = studio.live.step.index + 1  # the step in progress
    until(lambda: studio.live.step.index > after + 5)
    press(studio, "Pause")
    studio.live.wait(20)
    for step in seen:
        if step.index <= before or step.index > after:
            style = 25 if step.index <= before else 200
            losses = step.losses
            assert losses["total"] == pytest.approx(losses["content"] + style * losses["style"])
    assert number(studio, "style").value == 200


def test_knobs_reach_the_weights(studio):
    for name, (slider, box, _) in studio.knobs.items():
        slider.value = 123 if name == "style" else (slider.min + slider.max) / 2
        held = studio.weights.layers.get(name, getattr(studio.weights, name, None))
        assert held == box.value == pytest.approx(slider.value, rel=1e-2)
        box.value = box.max + 1  # out of range
        assert box.value == box.max == pytest.approx(slider.value)
    usual = nst.Weights()
    for name, (_, _, _, _, number, _) in studio.KNOBS.items():
        assert number == usual.layers.get(name, getattr(usual, name, None))


def test_an_exact_number_survives_the_slider_beside_it(studio):
    slider, box, _ = studio.knobs["style"]
    box.value = 25.1
    slider.value = 10 ** (round(math.log10(25.1) / slider.step) * slider.step)  # by the browser
    assert studio.weights.style == 25.1


def test_pause_rests_and_start_goes_on(studio):
    press(studio, "Start")
    press(studio, "Start")
    until(lambda: studio.live.step.index > 5)
    assert len(workers()) == 1
    press(studio, "Pause")
    studio.live.wait(20)
    index = studio.live.step.index
    assert f"paused · step {index}" in studio.status.value
    press(studio, "Start")
    until(lambda: studio.live.step.index > index + 2)


def test_pictures_come_often_but_not_too_often(studio, monkeypatch):
    clock, shown = SimpleNamespace(now=1e6), []
    clock.monotonic = lambda: clock.now
    monkeypatch.setitem(studio.renew.__globals__, "time", clock)
    painting = SimpleNamespace(state="painting", error=None, step=studio.live.step)
    studio.renew(painting)
    for _ in range(100):
        clock.now += 0.01
        studio.canvas.value = b""
        studio.renew(painting)
        shown.append(studio.canvas.value != b"")
    assert shown.count(True) in (7, 8)
    painting.state, studio.canvas.value = "paused", b""
    studio.renew(painting)
    assert studio.canvas.value != b""
    studio.film.next_picture = studio.film.next_curves = 0


def test_reset_begins_again(studio):
    first = studio.live.step.image
    studio.live.advance(5)
    assert not torch.equal(studio.live.step.image, first)
    press(studio, "Reset")
    studio.live.wait(20)
    assert studio.live.step.index == 1
    assert torch.equal(studio.live.step.image, first)


def test_size_style_and_colours_go_on_from_the_picture(studio):
    studio.live.advance(8)
    before = studio.live.step.image
    for menu, value in ((studio.paintings.menu, "poppies"), (studio.keep, True)):
        menu.value = value
        studio.live.wait(20)
        assert studio.live.step.index == 1
        assert torch.equal(studio.live.step.image, before)
    studio.size.value = 96
    studio.live.wait(20)
    assert max(studio.live.step.image.shape) == 96
    assert (nst.resize(studio.live.step.image, 64) - before).abs().mean() < 0.03
    studio.start.value = "content"
    studio.live.wait(20)
    photo = nst.resize(studio.photos.pictures["temple"], 96)
    assert torch.allclose(studio.live.step.image, photo, atol=1e-6)


def test_every_recipe_paints(studio):
    assert len(studio.recipe_buttons) == len(studio.recipes)
    usual = nst.Weights()
    usual = {"content": usual.content, "style": usual.style, "tv": usual.tv} | usual.layers
    for recipe in studio.recipes.values():
        press(studio, recipe["title"])
        studio.live.wait(20)
        assert studio.photos.menu.value == recipe["content"]
        assert studio.paintings.menu.value == recipe["style"]
        assert studio.keep.value is recipe.get("keep_colors", False)
        wanted = usual | recipe.get("weights", {}) | recipe.get("layers", {})
        assert {knob: number(studio, knob).value for knob in wanted} == pytest.approx(wanted)
        assert studio.message.value
        studio.live.advance(2)
    assert studio.live.error is None


def test_a_recipe_begins_afresh_and_what_it_leaves_out_is_as_usual(studio, monkeypatch):
    first = studio.live.step.image
    number(studio, "relu1_1").value = 1
    studio.live.advance(5)
    recipe = {"content": "temple", "style": "starry_night", "layers": {"relu4_1": 0.5}, "why": "?"}
    monkeypatch.setitem(studio.recipes, "mine", recipe)
    studio.use("mine")
    studio.live.wait(20)
    assert torch.equal(studio.live.step.image, first)
    assert studio.weights == nst.Weights(layers=nst.Weights().layers | {"relu4_1": 0.5})


def test_save_writes_the_settings_and_never_overwrites(studio):
    number(studio, "style").value = 123
    studio.live.advance(3)
    for count in (1, 2, 3):
        press(studio, "Save")
        path = Path("paintings", f"temple-starry_night-{count:03}.png")
        assert path.name in studio.message.value
        with Image.open(path) as picture:
            settings = json.loads(picture.text["settings"])
            saved = nst.load_image(picture)
        assert torch.allclose(saved, studio.live.step.image, atol=0.51 / 255)
        assert settings["weights"]["style"] == 123
        assert (settings["size"], settings["step"], settings["start"]) == (64, 4, "matched")
    Path("paintings/temple-starry_night-002.png").write_bytes(b"somebody else's")
    Path("paintings/temple-starry_night-001.png").unlink()
    press(studio, "Save")  # into the gap
    press(studio, "Save")  # past the others
    assert len(list(Path("paintings").iterdir())) == 4
    assert Path("paintings/temple-starry_night-002.png").read_bytes() == b"somebody else's"


def test_a_save_that_fails_says_so(studio):
    Path("paintings").write_text("a file where the folder should be")
    press(studio, "Save")
    Path("paintings").unlink()
    assert studio.message.value.startswith("Save:")
    assert "paintings" in studio.message.value


def upload(choice, name, content):
    """As the browser does: an upload of a file with an earlier one's time is that file again."""
    moment = datetime.fromtimestamp(len(content), timezone.utc)
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    choice.upload.value = (file | {"last_modified": moment},)


def png(*size, mode="RGB"):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_uploads(studio):
    studio.live.advance(3)
    before = studio.live.step
    upload(studio.photos, "<b>notes</b>.jpg", b"this is not a picture")
    assert "not used" in studio.message.value
    assert "<b>" not in studio.message.value
    assert studio.photos.menu.value == "temple"
    studio.live.wait(20)
    assert studio.live.step is before
    upload(studio.photos, "mine.png", png(150, 100, mode="L"))
    studio.live.wait(20)
    assert studio.photos.menu.value == "mine.png"
    assert "temple" in studio.photos.menu.options
    assert studio.live.step.index == 1
    assert studio.live.step.image.shape == (1, 3, 43, 64)
    upload(studio.paintings, "hers.png", png(80, 80))
    studio.live.wait(20)
    assert studio.paintings.menu.value == "hers.png"
    assert studio.photos.menu.value == "mine.png"


def test_the_same_file_again_is_chosen_again(studio):
    file = png(60, 40)
    upload(studio.photos, "me.png", file)
    options = studio.photos.menu.options
    studio.photos.menu.value = "cat"
    upload(studio.photos, "me.png", file)
    assert (studio.photos.menu.value, studio.photos.menu.options) == ("me.png", options)
    upload(studio.photos, "me.png", png(40, 60))  # another one of that name
    assert studio.photos.menu.value not in options


def test_an_error_is_shown_raised_and_survived(studio):
    studio.live.advance(3)
    picture = studio.live.step.image

    def broken(picture):
        raise ValueError("there is no paint")

    studio.live.begin = broken
    studio.photos.menu.value = "cat"
    with pytest.raises(ValueError, match="no paint"):
        studio.live.wait(20)
    assert "failed: there is no paint" in studio.status.value
    assert torch.equal(studio.live.step.image, picture)
    press(studio, "20 steps here")
    assert "no paint" in studio.message.value
    press(studio, "Save")
    assert "saved" in studio.message.value
    studio.live.begin = studio.begin
    press(studio, "Start")
    until(lambda: studio.live.step.index > 3)
    assert studio.live.state == "painting"


def test_twenty_steps_here(studio):
    press(studio, "20 steps here")
    assert studio.live.step.index == 21
    assert "step 21" in studio.status.value


def test_building_it_again_takes_the_worker(studio):
    press(studio, "Start")
    until(lambda: studio.live.step.index > 3)
    again = build()
    assert studio.live.state == "paused"
    assert "paused · step 1" in again.status.value
    again.size.value = 64
    press(again, "Start")
    until(lambda: again.live.step.index > 3)
    assert len(workers()) == 1
    studio.live.advance(1)
    assert again.live.state == "paused"


def test_a_hundred_operations_in_random_order(studio):
    choose = random.Random(7)
    bad, good = b"no picture", png(120, 90)

    def choose_from(menu, options=()):
        menu.value = choose.choice(options or menu.options)

    def turn(box):
        box.value = choose.uniform(box.min, box.max)

    def nudge(slider):
        slider.value *= 0.9

    def upload_one():
        upload(studio.photos, f"{choose.random()}.png", choose.choice([bad, good]))

    operations = [partial(press, studio, x) for x in ("Start", "Start", "Start", "Pause", "Reset")]
    operations += [partial(press, studio, "Save"), upload_one, partial(studio.live.advance, 1)]
    operations += [partial(nudge, slider) for slider, _, _ in studio.knobs.values()]
    operations += [partial(turn, box) for _, box, _ in studio.knobs.values()]
    menus = (studio.photos.menu, studio.paintings.menu, studio.start)
    operations += [partial(choose_from, menu) for menu in menus]
    operations += [partial(choose_from, studio.size, (64, 96))]
    operations += [partial(choose_from, studio.keep, (True, False))]
    operations += [lambda: studio.use(choose.choice(list(studio.recipes)))]
    operations += [partial(time.sleep, 0.2)] * 2
    for _ in range(100):
        choose.choice(operations)()
        assert len(workers()) <= 1
        assert studio.live.error is None
        assert studio.live.step is not None
    press(studio, "Start")
    first = studio.live.step
    until(lambda: studio.live.step is not first)
    assert studio.live.state == "painting"
    press(studio, "Pause")
    studio.live.wait(20)
    for path in Path("paintings").glob("*"):
        nst.load_image(path)
    assert os.listdir() in ([], ["paintings"])
