"""Recipes, the pictures painted by them, and the script that paints them."""

import importlib.util
import io
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import nst_helpers as nst

IMAGES = Path(__file__).resolve().parents[1] / "images"
RECIPES = json.loads((IMAGES / "recipes.json").read_text(encoding="utf-8"))
SMALL = {"sizes": [32, 48], "steps": [3, 2]}

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
def test_a_recipe_is_complete(name):
    recipe = RECIPES[name]
    assert set(recipe) == {
        *("title", "content", "style", "weights", "layers", "sizes", "steps"),
        *("coarse_content", "init", "keep_colors", "why"),
    }
    assert (IMAGES / f"content/{recipe['content']}.jpg").is_file()
    assert (IMAGES / f"style/{recipe['style']}.jpg").is_file()
    assert set(recipe["weights"]) == {"content", "style", "tv"}
    assert list(recipe["layers"]) == list(nst.STYLE_LAYERS)
    assert recipe["sizes"] == sorted(recipe["sizes"])
    assert recipe["sizes"][-1] == 1024
    assert len(recipe["steps"]) == len(recipe["sizes"])
    assert len(recipe["why"]) > 40


@each_recipe
def test_the_gallery_is_painted_by_the_recipes(name, script):
    recipe, gallery = RECIPES[name], IMAGES / "gallery"
    assert script.is_painted(name, recipe, gallery), "run `make gallery`"
    with Image.open(gallery / f"{name}.jpg") as picture:
        assert max(picture.size) == 1024
    assert (gallery / f"{name}.jpg").stat().st_size <= 300_000
    record = script.read(gallery / f"{name}.json")
    assert record["seconds"] > 0
    assert list(record["losses"]) == [str(size) for size in recipe["sizes"]]
    for losses, steps in zip(record["losses"].values(), recipe["steps"], strict=True):
        assert 0 < losses["steps"] <= steps
        weights = recipe["weights"]
        assert losses["total"] >= weights["style"] * losses["style"] > 0
        assert all(math.isfinite(losses[key]) for key in ("content", "style", "tv", "total"))


@each_recipe
def test_a_gallery_picture_has_both_parents(name, vgg):
    """Nearer to the painting's style than the photograph is, to its content than the painting."""
    recipe = RECIPES[name]
    photo = nst.load_image(IMAGES / f"content/{recipe['content']}.jpg", 256)
    painting = nst.load_image(IMAGES / f"style/{recipe['style']}.jpg", 256)
    result = nst.load_image(IMAGES / f"gallery/{name}.jpg", 256)
    if recipe["keep_colors"]:
        painting = nst.match_colors(painting, photo)
    grams = {n: nst.gram_matrix(f) for n, f in vgg(painting, nst.STYLE_LAYERS).items()}
    usual = nst.Weights().layers

    def style(picture):
        features = vgg(picture, nst.STYLE_LAYERS)
        return sum(usual[n] * nst.style_loss(features[n], grams[n]) for n in usual)

    def content(picture):
        picture = torch.nn.functional.interpolate(picture, photo.shape[-2:], mode="bicubic")
        features = vgg(picture.clamp(0, 1), ["relu4_2"])["relu4_2"]
        return nst.content_loss(features, vgg(photo, ["relu4_2"])["relu4_2"])

    assert style(result) < 0.5 * style(photo)
    assert content(result) < 0.9 * content(painting)


def test_a_recipe_is_what_one_would_write_by_hand():
    recipe = RECIPES["starry_night"] | SMALL | {"weights": {"content": 2, "style": 30, "tv": 5}}
    recipe |= {"layers": dict.fromkeys(nst.STYLE_LAYERS, 0) | {"relu3_1": 2}, "keep_colors": True}
    content = nst.load_image(IMAGES / f"content/{recipe['content']}.jpg")
    style = nst.match_colors(nst.load_image(IMAGES / "style/starry_night.jpg"), content)
    layers = dict.fromkeys(nst.STYLE_LAYERS, 0.0) | {"relu3_1": 2 / 256**2}
    by_hand = nst.stylize(
        content,
        style,
        weights=nst.Weights(2, 30, 5, layers),
        sizes=(32, 48),
        steps=(3, 2),
        coarse_content=recipe["coarse_content"],
        init=recipe["init"],
    )
    for ours, theirs in zip(nst.follow(recipe, IMAGES), by_hand, strict=True):
        assert ours.losses == theirs.losses
        assert torch.equal(ours.image, theirs.image)


def test_pictures_of_ones_own(tmp_path, temple):
    """Any file, by its path with an ending; what a recipe leaves out is as usual."""
    nst.to_pil(temple).save(tmp_path / "my photo.png")
    names = {"content": tmp_path / "my photo.png", "style": "poppies"}
    (ours,) = nst.follow(names, IMAGES, sizes=48, steps=1)
    (theirs,) = nst.stylize(
        nst.load_image(tmp_path / "my photo.png"),
        nst.load_image(IMAGES / "style/poppies.jpg"),
        sizes=48,
        steps=1,
    )
    assert ours.losses == theirs.losses


def test_changes_replace_and_wrong_ones_are_refused():
    recipe = RECIPES["great_wave"]
    *_, last = nst.follow(recipe, IMAGES, sizes=48, steps=2, seed=1)
    assert (last.index, last.size) == (2, 48)
    assert recipe == json.loads((IMAGES / "recipes.json").read_text(encoding="utf-8"))["great_wave"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg does not exist"):
        nst.follow(recipe, IMAGES, content="nowhere")
    with pytest.raises(ValueError, match="stepps"):
        nst.follow(recipe, IMAGES, stepps=3)
    with pytest.raises(ValueError, match=r"layers has no 'relu9_1'; it may have relu1_1"):
        nst.follow(recipe, IMAGES, layers={"relu9_1": 2})
    with pytest.raises(ValueError, match="style must be a number from 0"):
        nst.follow(recipe, IMAGES, weights={"style": -1})


@pytest.fixture
def two(script, tmp_path, monkeypatch):
    """The script with two small recipes and a gallery of its own; what it says is kept."""
    recipes = {name: RECIPES[name] | SMALL for name in ("great_wave", "poppies")}
    said, read = [], script.read
    monkeypatch.setattr(
        script, "read", lambda path: recipes if path.name == "recipes.json" else read(path)
    )
    monkeypatch.setattr(script, "say", lambda text, last=False: said.append(text))
    monkeypatch.setattr(script, "ROW", ("nothing", 100))
    recipes["nothing"] = RECIPES["starry_night"] | {"sizes": [48], "steps": [1]}
    return script, recipes, said, tmp_path / "gallery"


def test_an_interrupted_gallery_goes_on(two, monkeypatch):
    script, _, said, gallery = two

    def interrupt(text, last=False):
        said.append(text)
        if text.startswith("poppies"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "say", interrupt)
        with pytest.raises(KeyboardInterrupt):
            script.main(["great_wave", "poppies"], gallery)
    assert sorted(path.name for path in gallery.iterdir()) == ["great_wave.jpg", "great_wave.json"]
    before = (gallery / "great_wave.jpg").stat().st_mtime_ns
    said.clear()
    script.main(["great_wave", "poppies"], gallery)
    assert said[0] == "great_wave: painted already, by the same recipe"
    assert said[-1].startswith("poppies: done in ")
    assert (gallery / "great_wave.jpg").stat().st_mtime_ns == before
    with Image.open(gallery / "poppies.jpg") as picture:
        assert max(picture.size) == 48


def test_only_what_changes_the_picture_paints_it_again(two):
    script, recipes, said, gallery = two
    script.main(["poppies"], gallery)
    recipes["poppies"]["why"] = "Better words."
    assert script.is_painted("poppies", recipes["poppies"], gallery)
    recipes["poppies"]["weights"] = {"content": 1, "style": 7, "tv": 0}
    said.clear()
    script.main(["poppies"], gallery)
    assert said[-1].startswith("poppies: done in ")
    record = script.read(gallery / "poppies.json")
    assert record["recipe"]["weights"]["style"] == 7
    assert record["losses"]["48"]["steps"] == 2


def test_a_name_without_recipe_is_refused(two):
    script, *_, gallery = two
    with pytest.raises(SystemExit, match="no recipe for mona_lisa; there are great_wave, poppies"):
        script.main(["mona_lisa"], gallery)


def test_a_picture_of_noise_is_made_to_fit(script):
    noise = nst.to_pil(torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    full = io.BytesIO()
    noise.save(full, "JPEG", quality=95, optimize=True, progressive=True)
    limit = full.tell() // 2
    data = script.jpeg(noise, limit)
    assert 0.8 * limit < len(data) <= limit
    with pytest.raises(ValueError, match="no JPEG of 256×256 fits into 100 bytes"):
        script.jpeg(noise, 100)
