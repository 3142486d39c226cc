"""Recipes, the pictures painted by them, and the script that paints them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import nst_helpers as nst
import nst_studio

IMAGES = Path(__file__).resolve().parents[1] / "images"
RECIPES = json.loads((IMAGES / "recipes.json").read_text(encoding="utf-8"))

each_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_gallery", IMAGES / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_painting_has_a_recipe():
    paintings = {path.stem for path in (IMAGES / "style").glob("*.jpg")}
    assert {recipe["style"] for recipe in RECIPES.values()} == paintings
    assert len({recipe["content"] for recipe in RECIPES.values()}) >= 5


@each_recipe
def test_the_gallery_is_painted_by_the_recipes(name, script):
    recipe, gallery = RECIPES[name], IMAGES / "gallery"
    assert script.is_painted(name, recipe, gallery), "run `make gallery`"
    assert recipe["sizes"][-1] == 1024
    assert len(recipe["why"]) > 40
    with Image.open(gallery / f"{name}.jpg") as picture:
        assert max(picture.size) == 1024
    assert (gallery / f"{name}.jpg").stat().st_size <= 300_000
    record = script.read(gallery / f"{name}.json")
    assert record["seconds"] > 0
    assert record["dtype"] in ("bfloat16", "float32")
    for size, steps in zip(recipe["sizes"], recipe["steps"], strict=True):
        losses = record["losses"][str(size)]
        assert 0 < losses["steps"] <= steps
        assert 0 < losses["content"] < 2
        assert 0 < losses["style"] < 0.5


@each_recipe
def test_a_gallery_picture_has_both_parents(name, vgg):
    """Its style is nearer to the painting's than the photograph's is; likewise its content."""
    recipe = RECIPES[name]
    photo = nst.load_image(IMAGES / f"content/{recipe['content']}.jpg", 192)
    painting = nst.load_image(IMAGES / f"style/{recipe['style']}.jpg", 192)
    result = nst.load_image(IMAGES / f"gallery/{name}.jpg", 192)
    losses_of = nst.relative_losses(vgg, photo, painting, nst.Weights())
    stretched = nst.resize(painting, photo.shape[-2:])
    with torch.no_grad():
        ours, theirs, start = map(losses_of, (result, stretched, photo))
    assert ours["style"] < 0.5 * start["style"]
    assert ours["content"] < 0.9 * theirs["content"]


def test_a_recipe_is_what_one_would_write_by_hand():
    """Case 7: what a recipe leaves out, single layers among it, keeps its default."""
    recipe = {"content": "temple", "style": "starry_night", "keep_colors": True, "title": "x"}
    recipe |= {"weights": {"style": 30, "tv": 5}, "layers": {"relu4_1": 0.5}, "coarse_content": 3}
    content = nst.load_image(IMAGES / "content/temple.jpg")
    style = nst.match_colors(nst.load_image(IMAGES / "style/starry_night.jpg"), content)
    layers = dict.fromkeys(nst.STYLE_LAYERS, 0.2) | {"relu4_1": 0.5}
    options = {"sizes": (32, 48), "steps": (3, 2)}
    weights = nst.Weights(1, 30, 5, layers)
    by_hand = nst.stylize(content, style, weights=weights, coarse_content=3, **options)
    for ours, theirs in zip(nst_studio.follow(recipe, IMAGES, **options), by_hand, strict=True):
        assert ours.losses == theirs.losses
        assert torch.equal(ours.image, theirs.image)


@pytest.mark.parametrize("entry", ["sytle", "stepz", "optimizer"])
def test_a_misspelt_entry_is_named(entry):
    with pytest.raises(TypeError, match=entry):
        nst_studio.follow(RECIPES["poppies"], IMAGES, **{entry: 1})


@pytest.fixture
def two(script, monkeypatch, tmp_path):
    """The script with two recipes, made small, and what it says."""
    recipes = {
        n: RECIPES[n] | {"sizes": [32, 48], "steps": [3, 2]} for n in ("great_wave", "poppies")
    }
    said = []
    monkeypatch.setattr(script, "say", lambda text, last=False: said.append(text))
    read = script.read
    monkeypatch.setattr(script, "read", lambda p: recipes if p.name == "recipes.json" else read(p))
    return script, recipes, said, tmp_path / "gallery"


def test_the_script_paints_what_is_missing_or_outdated(two):
    script, recipes, said, gallery = two
    script.main(["great_wave"], gallery)
    assert sorted(path.name for path in gallery.iterdir()) == ["great_wave.jpg", "great_wave.json"]
    before = (gallery / "great_wave.jpg").stat().st_mtime_ns
    said.clear()
    script.main(["great_wave", "poppies"], gallery)
    assert said[0] == "great_wave: painted already, by the same recipe"
    assert said[-1].startswith("poppies: done in ")
    assert (gallery / "great_wave.jpg").stat().st_mtime_ns == before
    recipes["poppies"] |= {"why": "Better words.", "weights": {"style": 7}}
    script.main(["poppies"], gallery)
    assert script.read(gallery / "poppies.json")["recipe"]["weights"]["style"] == 7


def test_a_name_without_recipe_is_refused(two):
    script, *_, gallery = two
    with pytest.raises(SystemExit, match="no recipe for mona_lisa; there are great_wave, poppies"):
        script.main(["mona_lisa"], gallery)
