"""Figures carry their text description and stay small."""

import base64
import io
import json

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import nst_helpers as nst
import nst_tools


@pytest.fixture
def shown(monkeypatch):
    """Call a function that shows a figure; return the data shown, and its metadata."""

    def show(function, *args, **options):
        calls = []
        monkeypatch.setattr(nst_tools, "display", lambda data, **rest: calls.append((data, rest)))
        function(*args, **options)
        ((data, rest),) = calls
        return data, rest.get("metadata")

    return show


def decode(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_with_titles(shown, temple, starry_night):
    pictures = temple, starry_night, temple, temple, temple  # the second row has an empty place
    titles, alt = ("photo", "painting"), "A temple and a night."
    data, metadata = shown(nst.show, *pictures, titles=titles, columns=3, alt=alt)
    assert data["text/plain"] == metadata["image/jpeg"]["alt"] == alt
    picture = decode(data["image/jpeg"])
    assert picture.format == "JPEG"
    assert 1.5 * picture.height < picture.width < 2.5 * picture.height
    assert len(data["image/jpeg"]) < 200_000


def test_maps_share_one_colour_scale(shown):
    data, _ = shown(nst.show, torch.zeros(8, 8), torch.ones(8, 8), alt="Black and white.")
    picture = decode(data["image/jpeg"]).convert("L")
    left, right = (
        picture.getpixel((round(picture.width * x), picture.height // 2)) for x in (0.25, 0.75)
    )
    assert left < 20
    assert right > 235


def test_curves_are_png(shown):
    figure = Figure()
    figure.subplots().plot([1, 2])
    data, metadata = shown(nst.show_figure, figure, alt="A rising line.")
    assert decode(data["image/png"]).format == "PNG"
    assert metadata["image/png"]["alt"] == "A rising line."


def test_a_painted_figure_shows_its_files_and_settings(shown, monkeypatch, tmp_path):
    figure = {"settings": {"content": "temple", "sizes": [64, 128]}, "variants": {}}
    figure["variants"] = {"a": {"init": "noise"}, "b": {"weights": {"style": 3}}, "c": {}}
    (tmp_path / "figures.json").write_text(json.dumps({"start": figure}))
    monkeypatch.setattr(nst_tools, "FIGURES", tmp_path / "figures.json")
    data, _ = shown(nst.show_painted, "start", alt="Three temples.", columns=2)
    assert data["text/plain"] == "Three temples."
    assert data["text/markdown"].splitlines() == [
        "Painted by `make pictures` with content temple; sizes 64, 128.",
        "",
        "|init noise<br>![Three temples.](../images/figures/start-a.jpg)"
        "|weights style=3<br>![weights style=3](../images/figures/start-b.jpg)|",
        "|---|---|",
        "|<br>![](../images/figures/start-c.jpg)|",
    ]
