"""nst_studio.Studio without a browser: what a hand does to the panel is done to its widgets."""

import base64
import io
import itertools
import json
import random
import re
import time
from datetime import datetime, timezone
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import nst_helpers as nst
import nst_panel
import nst_studio

stylize = nst.stylize


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.01)


def at_rest(studio):
    studio.live.wait(20)
    return studio.live.state


def press(studio, name):
    (button,) = [button for button in studio.buttons if button.description == name]
    button.click()


def pause(studio):
    until(lambda: studio.live.step)
    if studio.live.state == "painting":
        press(studio, "Pause")
    return at_rest(studio)


def upload(chooser, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    chooser.upload.value = (file | {"last_modified": datetime.now(timezone.utc)},)


def png(*size):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def saved(studio):
    """Press Save; return the file that the link offers."""
    press(studio, "Save")
    link = re.search(r'download="(.+?)" href="data:image/png;base64,(.+?)"', studio.message.value)
    return base64.b64decode(link[2])


def record(file):
    with Image.open(io.BytesIO(file)) as picture:
        return json.loads(picture.text["nst"])


@pytest.fixture
def studio(monkeypatch):
    """A small studio that has painted some steps and rests; at every size it makes few."""

    def few(content, styles, steps, **options):
        few.styles = styles
        return stylize(content, styles, steps=[few.steps] * len(steps), **options)

    few.steps = 10**6
    monkeypatch.setattr(nst, "stylize", few)
    monkeypatch.setattr(nst_studio, "display", lambda *args, **options: None)
    studio = nst_studio.Studio(sizes=(48,), finish=96)
    studio.few = few
    until(lambda: len(studio.losses) > 2)
    pause(studio)
    yield studio
    studio.live.pause()
    studio.live.wait(20)


def test_it_is_shown_and_paints_at_once(monkeypatch):
    shown = []
    monkeypatch.setattr(nst_studio, "display", lambda *args, **options: shown.append(args))
    studio = nst_studio.Studio(sizes=(32, 48))
    until(lambda: studio.live.step)
    assert studio.live.state == "painting"
    ((bundle,),) = shown
    assert {"application/vnd.jupyter.widget-view+json", "image/jpeg", "text/plain"} <= set(bundle)
    until(lambda: studio.losses and studio.losses[-1][0] == 48)  # coarse to fine, by itself
    until(lambda: "48 px" in studio.status.value)
    assert studio.buttons[0].description == "Pause"
    assert re.search(r"share of content lost [\d.]+%, share of style missing", studio.chart.value)
    pause(studio)
    assert studio.buttons[0].description == "Paint"
    with Image.open(io.BytesIO(studio.canvas.value)) as picture:
        assert max(picture.size) == 48


@pytest.mark.parametrize("by", ["slider", "box"])
def test_the_very_next_steps_obey(studio, by):
    seen, show = [], studio.live.show
    studio.live.show = lambda live: (seen.append(live.step), show(live))
    press(studio, "Paint")
    until(lambda: len(seen) > 5)
    getattr(studio.knobs["style"], by).value = 200
    after = len(seen) + 1  # the step in progress
    until(lambda: len(seen) > after + 5)
    pause(studio)
    for step in seen[after:]:
        losses = step.losses
        assert losses["total"] == pytest.approx(losses["content"] + 200 * losses["style"])


@pytest.mark.parametrize("name", nst_panel.KNOBS)
def test_every_slider_acts_and_can_be_reset(studio, name):
    knob, weights = studio.knobs[name], studio.weights
    usual = nst_panel.weights_of({})[name]
    assert knob.box.value == knob.usual == usual

    def paint_on():
        studio.live.restart(start)
        until(lambda: studio.live.step and studio.live.step.index > 25)
        pause(studio)
        return studio.live.step.image

    start = studio.live.step.image
    before = paint_on()
    knob.slider.value = knob.low
    assert knob.box.value == 0  # on a logarithmic scale as well
    knob.slider.value = knob.box.max
    assert knob.box.value == pytest.approx(knob.box.max)
    assert weights.layers.get(name, getattr(weights, name, None)) == knob.box.value
    assert (paint_on() - before).abs().mean() > 2 / 255
    knob.back.click()
    assert weights.layers.get(name, getattr(weights, name, None)) == usual


def test_an_exact_number_survives_the_slider_beside_it(studio):
    knob = studio.knobs["style"]
    knob.box.value = 25.1
    knob.slider.value = 10 ** (round(knob.place(25.1) / knob.step) * knob.step)  # by the browser
    assert studio.weights.style == 25.1


def test_it_rests_by_itself_and_a_slider_wakes_it(studio):
    studio.few.steps = 3
    press(studio, "Start over")
    assert at_rest(studio) == "done"
    assert "resting" in studio.status.value
    count = len(studio.losses)
    studio.knobs["tv"].box.value = 5
    until(lambda: len(studio.losses) > count)
    assert at_rest(studio) == "done"
    studio.few.steps = 10**6
    press(studio, "Paint")
    pause(studio)
    studio.knobs["tv"].box.value = 6
    assert at_rest(studio) == "paused"  # whoever pauses has a reason


def test_what_begins_afresh_and_what_goes_on(studio):
    photos, paintings = studio.choosers.values()

    def begun_with(change):
        begun, begin = [], studio.begin
        studio.live.begin = lambda picture: (begun.append(picture), begin(picture))[1]
        change()
        until(lambda: begun and studio.live.step)
        pause(studio)
        return "picture" if begun[-1] is not None else "afresh"

    assert begun_with(lambda: setattr(photos.menu, "value", "cat")) == "afresh"
    assert begun_with(lambda: setattr(studio.init, "value", "content")) == "afresh"
    assert begun_with(lambda: setattr(paintings.menu, "value", "poppies")) == "afresh"
    studio.over.value = True
    assert begun_with(lambda: setattr(paintings.menu, "value", "great_wave")) == "picture"
    assert begun_with(lambda: setattr(studio.colors, "value", True)) == "picture"
    assert begun_with(lambda: setattr(photos.menu, "value", "temple")) == "afresh"


def test_every_recipe_paints(studio):
    for title, recipe in studio.recipe.options[1:]:
        studio.knobs["relu1_1"].box.value = 1
        studio.recipe.value = recipe
        assert studio.recipe.value == ""  # it can be chosen again
        until(lambda: studio.live.step)
        pause(studio)
        assert studio.choosers["content"].menu.value == recipe["content"], title
        assert studio.choosers["style"].menu.value == recipe["style"]
        wanted = nst_panel.weights_of(recipe)
        assert {name: knob.box.value for name, knob in studio.knobs.items()} == wanted
        assert {**studio.known, **recipe}.items() >= studio.extras.items()
        others = recipe.get("others", [{"style": "none"}])
        assert studio.second.value == others[0]["style"]
        assert recipe["why"][:20] in studio.message.value


def test_a_second_painting_is_mixed_in_and_comes_back(studio):
    upload(studio.choosers["style"], "mine.png", png(90, 60))
    studio.choosers["style"].menu.value = "poppies"
    for name, count in {"mine.png": 2, "none": 1}.items():
        studio.second.value = name
        until(lambda: studio.live.step)
        pause(studio)
        assert len(studio.few.styles) == count
        press(studio, "Keep")
    studio.kept.menu.value = next(iter(studio.kept.sources))
    assert studio.second.value == "mine.png"
    others = record(saved(studio))["settings"]["others"]
    assert others == [{"style": "mine.png", "style_weight": 0.5}]
    press(studio, "Paint")
    until(lambda: studio.live.step)
    mine = studio.choosers["style"].sources["mine.png"]
    assert torch.equal(studio.few.styles[1].image, mine)


def test_a_kept_picture_comes_back_with_its_settings(studio):
    studio.knobs["style"].box.value = 60
    press(studio, "Keep")
    before, (name,) = studio.image, studio.kept.sources
    studio.knobs["style"].box.value = 5
    studio.choosers["content"].menu.value = "cat"
    press(studio, "Keep")
    for _ in range(2):  # not only once
        studio.kept.menu.value = name
        assert at_rest(studio) == "paused"
        assert studio.weights.style == studio.knobs["style"].box.value == 60
        assert studio.choosers["content"].menu.value == "temple"
        assert torch.allclose(studio.image, before, atol=0.51 / 255)
        with Image.open(io.BytesIO(studio.canvas.value)) as picture:
            assert (nst.load_image(picture) - before).abs().mean() < 0.03
        press(studio, "Paint")
        until(lambda: studio.live.step)
        assert (studio.live.step.image - before).abs().mean() < 0.05  # goes on from there
        pause(studio)


def test_a_saved_file_has_the_path_and_brings_all_back(studio):
    studio.knobs["style"].box.value = 60
    count = len(studio.losses)
    press(studio, "Paint")
    until(lambda: len(studio.losses) > count + 2)
    pause(studio)
    studio.knobs["relu5_1"].box.value = 0.5
    file = saved(studio)
    path, settings = record(file)["path"], record(file)["settings"]
    assert [sorted(set(entry) - {"step", "size"}) for entry in path[1:]] == [
        ["weights"],
        ["layers"],
    ]
    assert 0 < path[1]["step"] <= count + 1 <= path[2]["step"]
    assert (settings["weights"]["style"], settings["layers"]["relu5_1"]) == (60, 0.5)
    picture = studio.image
    studio.recipe.value = studio.recipe.options[1][1]
    pause(studio)
    upload(studio.choosers["style"], "mine.png", file)
    assert at_rest(studio) == "paused"
    assert record(saved(studio)) == record(file)
    assert torch.allclose(studio.image, picture, atol=0.51 / 255)
    assert len(studio.kept.sources) == 1


def test_a_saved_file_whose_photograph_is_missing_changes_nothing(studio):
    upload(studio.choosers["content"], "me.png", png(60, 40))
    pause(studio)
    file = saved(studio)
    other = nst_studio.Studio(sizes=(48,))
    until(lambda: other.live.step)
    upload(other.choosers["content"], "mine.png", file)
    assert "me.png is not here; upload it first" in other.message.value
    assert other.choosers["content"].menu.value == "temple"
    other.live.pause()


def test_uploads(studio):
    photos, step = studio.choosers["content"], studio.live.step
    upload(photos, "<b>notes</b>.jpg", b"this is not a picture")
    assert "notes&lt;/b&gt;.jpg is not a picture" in studio.message.value
    assert (photos.menu.value, studio.live.step, at_rest(studio)) == ("temple", step, "paused")
    file = png(150, 100)
    upload(photos, "me.png", file)
    assert photos.menu.value == "me.png"
    options = photos.menu.options
    photos.menu.value = "cat"
    upload(photos, "me.png", file)  # case 6: the same file again is chosen again
    assert (photos.menu.value, photos.menu.options) == ("me.png", options)
    upload(photos, "me.png", png(100, 150))
    assert photos.menu.value == "another me.png"
    until(lambda: studio.live.step)
    pause(studio)
    assert studio.live.step.image.shape == (1, 3, 48, 32)


def test_finishing_shows_progress_can_be_stopped_and_ends_in_the_strip(studio):
    studio.few.steps, said = 30, []
    studio.status.observe(lambda change: said.append(change.new), "value")
    press(studio, "Finish at 96 px")
    until(lambda: any("s left" in text for text in said))
    press(studio, "Stop finishing")
    assert at_rest(studio) == "paused"
    assert studio.image is not None
    studio.few.steps = 2
    press(studio, "Finish at 96 px")
    assert at_rest(studio) == "done"
    assert "finished" in studio.status.value
    assert max(studio.image.shape) == 96
    assert len(studio.kept.sources) == 1
    studio.knobs["style"].box.value = 50
    assert at_rest(studio) == "done"  # a finished picture stays
    press(studio, "Paint")
    until(lambda: studio.live.step and studio.live.step.size == 48)


def test_before_and_after(studio):
    photo = nst.resize(studio.choosers["content"].picture(), studio.image.shape[-2:])
    studio.split.box.value = 50
    with Image.open(io.BytesIO(studio.canvas.value)) as shown:
        shown = nst.load_image(shown)
    assert (shown - photo)[..., :20].abs().mean() < 0.05
    assert (shown - studio.image)[..., 28:].abs().mean() < 0.05
    assert (studio.image - photo)[..., :20].abs().mean() > 0.1


def test_pictures_come_often_but_not_too_often(studio, monkeypatch):
    clock, shown = SimpleNamespace(now=1e6), []
    clock.monotonic = lambda: clock.now
    monkeypatch.setitem(studio.renew.__globals__, "time", clock)
    painting = SimpleNamespace(state="painting", error=None, step=studio.live.step)
    for _ in range(100):
        clock.now += 0.01
        studio.canvas.value = b""
        studio.renew(painting)
        shown.append(studio.canvas.value != b"")
    assert shown.count(True) in (7, 8)
    painting.state, studio.canvas.value = "paused", b""
    studio.renew(painting)
    assert studio.canvas.value != b""


def test_errors_are_shown_raised_and_survived(studio):
    picture = studio.image
    studio.extras = {"style_scale": "large"}
    press(studio, "Start over")
    with pytest.raises(TypeError):
        studio.live.wait(20)
    assert "failed" in studio.status.value
    assert torch.equal(studio.image, picture)
    studio.extras = {}
    press(studio, "Paint")
    until(lambda: studio.live.step)
    assert studio.live.state == "painting"
    studio.image = None
    press(studio, "Keep")
    assert "no picture yet" in studio.message.value


def test_curves_keep_apart_what_they_show():
    losses = [(48, 0.5, 1.5), (48, 0.7, 0.001), (96, 0.8, 0.0)]
    svg = nst_panel.chart(losses)
    assert svg.count("<polyline") == 2
    assert svg.count("stroke-dasharray") == 4
    assert "3 steps: share of content lost 80.0%, share of style missing 0.0%" in svg
    assert [size for size in ("48 px", "96 px") if svg.count(size) == 1] == ["48 px", "96 px"]
    assert len(nst_panel.chart(losses * 1000)) < 20_000


def test_a_hundred_operations_in_random_order(studio):
    choose, bad, good, file = random.Random(7), b"no picture", png(120, 90), saved(studio)
    names = (f"{n}.png" for n in itertools.count())

    def choose_from(menu):
        menu.value = choose.choice(list(menu.options))

    def turn(knob):
        knob.box.value = choose.uniform(knob.box.min, knob.box.max)

    def upload_one():
        chooser = choose.choice([*studio.choosers.values()])
        upload(chooser, next(names), choose.choice([bad, good, file]))

    menus = [*(x.menu for x in studio.choosers.values()), studio.kept.menu, studio.second]
    operations = [button.click for button in studio.buttons] * 3 + [upload_one]
    operations += [partial(turn, knob) for knob in [*studio.knobs.values(), studio.split]]
    operations += [lambda: choose_from(choose.choice(menus)), partial(time.sleep, 0.2)] * 2
    operations += [lambda: choose.choice([studio.over, studio.colors]).set_trait("value", True)]
    operations += [lambda: setattr(studio.recipe, "value", studio.recipe.options[3][1])]
    press(studio, "Keep")
    for _ in range(100):
        choose.choice(operations)()
        assert studio.live.error is None
    press(studio, "Start over")
    until(lambda: studio.live.step)
    assert pause(studio) == "paused"
    assert record(saved(studio))["settings"] == studio.known
