"""The panel of notebook 05, driven from Python while it paints: the cells that students run."""

import io
import itertools
import json
import math
import os
import random
import shutil
import threading
import time
from datetime import datetime, timezone
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


def build(names=None):
    """Run the cells that make the panel; returns their names as attributes."""
    names = {"__name__": "__main__"} if names is None else names
    for cell in CELLS:
        exec(compile(cell.source, cell.id, "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
def studio(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "images", tmp_path / "images")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    studio = build()
    studio.size.value = 96
    press(studio, "Reset")
    studio.live.wait(20)
    yield studio
    studio.live.close()
    assert workers() == []


def press(studio, name):
    (found,) = [
        button for button in studio.buttons + studio.recipe_buttons if button.description == name
    ]
    found.click()


def number(studio, knob):
    return studio.knobs[knob][1]


def total(losses, content, style):
    return content * losses["content"] + style * losses["style"]


def test_the_first_picture_is_the_start(studio):
    with Image.open(io.BytesIO(studio.canvas.value)) as shown:
        assert max(shown.size) == 96
    assert studio.live.step.index == 1
    assert "paused · step 1" in studio.status.value


@pytest.mark.parametrize("by", ["slider", "number"])
def test_the_very_next_steps_obey(studio, by):
    seen, show = [], studio.live.show
    studio.live.show = lambda live: (seen.append((time.monotonic(), live.step)), show(live))
    press(studio, "Start")
    until(lambda: len(seen) > 5)
    index, moment = studio.live.step.index, time.monotonic()
    widget = studio.knobs["style"][0 if by == "slider" else 1]
    widget.value = 20_000
    until(lambda: studio.live.step.index > index + 5)
    press(studio, "Pause")
    studio.live.wait(20)
    before = [step for _, step in seen if step.index <= index]
    after = [(when, step) for when, step in seen if step.index > index + 1]  # one was in progress
    assert after
    for step in before:
        assert step.losses["total"] == pytest.approx(total(step.losses, 1, 500))
    for _, step in after:
        assert step.losses["total"] == pytest.approx(total(step.losses, 1, 20_000))
    assert after[1][0] - moment < 1  # the first picture that the new weight has moved
    assert number(studio, "style").value == 20_000


def test_knobs_reach_the_weights(studio):
    for name, (slider, box, _) in studio.knobs.items():
        slider.value = (slider.min + slider.max) / 2 if name != "style" else 2000
        wanted = box.value * {"tv": 1e6, **nst.Weights().layers}.get(name, 1)
        held = studio.weights.layers.get(name, getattr(studio.weights, name, None))
        assert held == pytest.approx(wanted)
        assert box.value == pytest.approx(slider.value, rel=1e-2)
        box.value = box.max
        assert slider.value == pytest.approx(box.max)
        box.value = box.max + 1  # out of range
        assert box.value == box.max


def test_an_exact_number_survives_the_slider_beside_it(studio):
    slider, box, _ = studio.knobs["style"]
    box.value = 502
    slider.value = 10 ** (round(math.log10(502) / 0.05) * 0.05)  # what the browser makes of it
    assert studio.weights.style == 502


def test_pause_rests_and_start_goes_on(studio):
    press(studio, "Start")
    press(studio, "Start")
    until(lambda: studio.live.step.index > 5)
    assert len(workers()) == 1
    press(studio, "Pause")
    studio.live.wait(20)
    index = studio.live.step.index
    assert f"paused · step {index}" in studio.status.value
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05
    assert studio.live.step.index == index
    press(studio, "Start")
    until(lambda: studio.live.step.index > index + 2)


def test_pictures_come_often_but_not_too_often(studio):
    shown = []
    studio.canvas.observe(lambda _: shown.append(time.monotonic()), "value")
    press(studio, "Start")
    time.sleep(4)
    press(studio, "Pause")
    studio.live.wait(20)
    gaps = [b - a for a, b in itertools.pairwise(shown[:-2])]  # without the rest
    assert max(gaps) < 1
    assert min(gaps) >= 0.12
    assert len(gaps) >= 8


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
    studio.size.value = 128
    studio.live.wait(20)
    assert max(studio.live.step.image.shape) == 128
    assert (nst.resize(studio.live.step.image, 96) - before).abs().mean() < 0.03
    studio.start.value = "content"
    studio.live.wait(20)
    photo = nst.resize(studio.photos.pictures["temple"], 128)
    assert torch.allclose(studio.live.step.image, photo, atol=1e-6)


def test_every_recipe_paints(studio):
    assert set(studio.recipes) == {path.stem for path in (ROOT / "images/style").glob("*.jpg")}
    assert len(studio.recipe_buttons) == len(studio.recipes)
    for name, recipe in studio.recipes.items():
        press(studio, recipe["title"])
        studio.live.wait(20)
        assert studio.photos.menu.value == recipe["content"]
        assert studio.paintings.menu.value == name
        assert studio.keep.value is recipe["keep_colors"]
        for knob, weight in (recipe["weights"] | recipe["layers"]).items():
            assert number(studio, knob).value == (weight / 1e6 if knob == "tv" else weight)
        assert len(recipe["why"]) > 40
        studio.live.advance(2)
    assert studio.live.error is None


def test_save_writes_the_settings_and_never_overwrites(studio):
    number(studio, "style").value = 1234
    studio.live.advance(3)
    for count in (1, 2, 3):
        press(studio, "Save")
        path = Path("paintings", f"temple-starry_night-{count:03}.png")
        assert path.name in studio.message.value
        with Image.open(path) as picture:
            settings = json.loads(picture.text["settings"])
            saved = nst.load_image(picture)
        assert torch.allclose(saved, studio.live.step.image, atol=0.51 / 255)
        assert settings["weights"]["style"] == 1234
        assert (settings["size"], settings["step"], settings["start"]) == (96, 4, "matched")
    Path("paintings/temple-starry_night-002.png").write_bytes(b"somebody else's")
    Path("paintings/temple-starry_night-001.png").unlink()
    press(studio, "Save")  # into the gap
    press(studio, "Save")  # past the others
    assert sorted(path.name[-7:-4] for path in Path("paintings").iterdir()) == [
        "001",
        "002",
        "003",
        "004",
    ]
    assert Path("paintings/temple-starry_night-002.png").read_bytes() == b"somebody else's"


def test_a_save_that_fails_says_so(studio):
    Path("paintings").write_text("a file where the folder should be")
    press(studio, "Save")
    assert studio.message.value.startswith("Save:")
    assert "paintings" in studio.message.value


def upload(choice, name, content):
    choice.upload.value = (
        {
            "name": name,
            "type": "",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(timezone.utc),
        },
    )


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
    assert "0x" not in studio.message.value  # no address of an object in memory
    assert studio.photos.menu.value == "temple"
    studio.live.wait(20)
    assert studio.live.step is before
    upload(studio.photos, "mine.png", png(150, 100, mode="L"))
    studio.live.wait(20)
    assert studio.photos.menu.value == "mine.png"
    assert "temple" in studio.photos.menu.options
    assert studio.live.step.index == 1
    assert studio.live.step.image.shape == (1, 3, 64, 96)
    studio.live.advance(2)
    upload(studio.paintings, "hers.png", png(80, 80))
    studio.live.wait(20)
    assert studio.paintings.menu.value == "hers.png"
    assert studio.photos.menu.value == "mine.png"


def test_an_error_is_shown_raised_and_survived(studio):
    studio.live.advance(3)
    picture = studio.live.step.image
    upload(studio.photos, "line.png", png(300, 2))
    with pytest.raises(ValueError, match="px"):
        studio.live.wait(20)
    assert "failed" in studio.status.value
    assert "px" in studio.status.value
    assert torch.equal(studio.live.step.image, picture)
    press(studio, "Save")
    assert "saved" in studio.message.value
    studio.photos.menu.value = "cat"
    studio.live.wait(20)
    press(studio, "Start")
    until(lambda: studio.live.step.index > 3)
    assert studio.live.state == "painting"


def test_building_it_again_ends_the_old_worker(studio):
    press(studio, "Start")
    until(lambda: studio.live.step.index > 3)
    again = build(vars(studio).copy())
    assert workers() == []
    assert studio.live.state == "paused"
    assert "paused" in again.status.value
    again.size.value = 96
    press(again, "Start")
    until(lambda: again.live.step.index > 3)
    assert len(workers()) == 1
    again.live.close()


def test_twenty_steps_here(studio):
    press(studio, "20 steps here")
    assert studio.live.step.index == 21
    assert "step 21" in studio.status.value
    studio.live.begin = lambda picture: 1 / 0
    studio.live.restart()
    press(studio, "20 steps here")
    assert "division" in studio.message.value + studio.status.value


def test_a_hundred_operations_in_random_order(studio):
    choose = random.Random(7)
    bad, good = b"no picture", png(120, 90)
    photos, paintings = studio.photos, studio.paintings
    operations = [
        *(lambda name=name: press(studio, name) for name in ("Start", "Start", "Pause", "Reset")),
        *(lambda name=name: press(studio, name) for name in ("Start", "Save")),
        *(
            lambda box=box: setattr(box, "value", choose.uniform(box.min, box.max))
            for _, box, _ in studio.knobs.values()
        ),
        *(
            lambda slider=slider: setattr(slider, "value", slider.value * 0.9)
            for slider, _, _ in studio.knobs.values()
        ),
        lambda: setattr(photos.menu, "value", choose.choice(photos.menu.options)),
        lambda: setattr(paintings.menu, "value", choose.choice(paintings.menu.options)),
        lambda: setattr(studio.size, "value", choose.choice([96, 128])),
        lambda: setattr(studio.start, "value", choose.choice(studio.start.options)),
        lambda: setattr(studio.keep, "value", not studio.keep.value),
        lambda: studio.use(choose.choice(list(studio.recipes))),
        lambda: upload(photos, f"{choose.random()}.png", choose.choice([bad, good])),
        lambda: studio.live.advance(1),
        lambda: studio.live.close(),
        lambda: time.sleep(0.3),
    ]
    for _ in range(100):
        choose.choice(operations)()
        assert len(workers()) <= 1
        assert studio.live.error is None
        assert studio.live.step is not None
    studio.live.wait(0.5)
    press(studio, "Start")
    first = studio.live.step
    until(lambda: studio.live.step is not first)
    assert studio.live.state == "painting"
    assert len(workers()) == 1
    press(studio, "Pause")
    studio.live.wait(20)
    saved = sorted(Path("paintings").iterdir()) if Path("paintings").exists() else []
    for path in saved:
        nst.load_image(path)
    assert os.listdir() in ([], ["paintings"])
