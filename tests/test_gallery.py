"""Recipes, the pictures painted by them, and the script that paints them."""

import importlib.util
import json
import math
import re
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

import nst_helpers as nst
import nst_studio

IMAGES = Path(__file__).resolve().parents[1] / "images"
RECIPES = json.loads((IMAGES / "recipes.json").read_text(encoding="utf-8"))
FIGURES = json.loads((IMAGES / "figures.json").read_text(encoding="utf-8"))

each_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_pictures", IMAGES / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_painted_with_the_settings_that_the_notebook_shows(script):
    """It shows those of recipes.json; a picture's record has those that it was painted with."""
    pictures = script.plan(RECIPES, FIGURES)
    for name, settings in pictures.items():
        assert script.is_painted(name, settings), f"run `make pictures` for {name}"
        with Image.open(IMAGES / f"{name}.jpg") as picture:
            assert max(picture.size) == settings["sizes"][-1]
        record = script.read(IMAGES / f"{name}.json")
        assert record["seconds"] > 0
        assert record.get("dtype", "float32") in ("bfloat16", "float32")
        for size, steps in zip(settings["sizes"], settings["steps"], strict=True):
            losses = record["losses"][str(size)]
            assert 0 < losses["steps"] <= steps
            assert all(0 <= loss < math.inf for loss in losses.values())
    for folder in ("gallery", "figures"):
        painted = {path.stem for path in (IMAGES / folder).glob("*.*")}
        assert painted == {name.split("/")[1] for name in pictures if name.startswith(folder)}


def test_every_figure_is_shown_by_a_notebook_and_its_function_paints(script, monkeypatch):
    """A function of a notebook is run for two steps at two small sizes."""
    cells = []
    for path in (IMAGES.parent / "notebooks").glob("*.ipynb"):
        cells += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    for name in FIGURES:
        assert re.search(rf'["/]{name}["-]', "\n".join(cells)), f"no notebook shows {name}"
    monkeypatch.chdir(IMAGES.parent / "notebooks")
    for name, figure in FIGURES.items():
        if "function" in figure["settings"]:
            settings = figure["settings"] | list(figure["variants"].values())[-1]
            count = len(settings["sizes"])
            settings |= {"sizes": [48, 64, 80][:count], "steps": [2] * count}
            steps = list(script.begin(settings, None))
            assert steps[-1].size == settings["sizes"][-1], name
            assert math.isfinite(steps[-1].losses["total"])


@each_recipe
def test_a_gallery_picture_is_large_and_its_recipe_explained(name):
    recipe = RECIPES[name]
    assert recipe["sizes"][-1] >= 1024
    assert len(recipe["why"]) > 40
    assert all(trial["what"] for trial in recipe.get("trials", {}).values())


@each_recipe
def test_a_gallery_picture_has_both_parents(name, vgg):
    """Its style is nearer to the painting's than the photograph's is; likewise its content."""
    recipe = RECIPES[name]
    photo = nst.load_image(IMAGES / f"content/{recipe['content']}.jpg", 192)
    paintings = [style.at(192) for style in nst_studio.styles(recipe, IMAGES)]
    result = nst.load_image(IMAGES / f"gallery/{name}.jpg", 192)
    losses_of = nst.relative_losses(vgg, photo, paintings, nst.Weights())
    stretched = nst.resize(paintings[0].image, photo.shape[-2:])
    with torch.no_grad():
        ours, theirs, start = map(losses_of, (result, stretched, photo))
    assert ours["style"] < 0.5 * start["style"]
    assert ours["content"] < 0.9 * theirs["content"]


def test_a_misspelt_entry_is_named():
    with pytest.raises(TypeError, match="stepz"):
        nst_studio.follow(RECIPES["red_panda"], IMAGES, stepz=1)


@pytest.fixture
def two(script, monkeypatch, tmp_path):
    """The script with two recipes, made small, and what it says."""
    small = {"sizes": [32, 48], "steps": [3, 2], "trials": {}}
    recipes = {name: RECIPES[name] | small for name in ("boats", "red_panda")}
    said = []
    monkeypatch.setattr(script, "FILM", "none")
    monkeypatch.setattr(script, "say", lambda text, last=False: said.append(text))
    read = script.read
    files = {"recipes.json": recipes, "figures.json": {}}
    monkeypatch.setattr(script, "read", lambda p: files[p.name] if p.name in files else read(p))
    return script, recipes, said, (tmp_path / "images", tmp_path / "unfinished")


def test_the_script_paints_what_is_missing_or_outdated(two):
    script, recipes, said, folders = two
    gallery = folders[0] / "gallery"
    gallery.mkdir(parents=True)
    script.main(["boats"], *folders)
    assert sorted(path.name for path in gallery.iterdir()) == ["boats.jpg", "boats.json"]
    before = (gallery / "boats.jpg").stat().st_mtime_ns
    said.clear()
    script.main([], *folders)
    assert said[0] == "pictures: 1 up to date, 1 to paint"
    assert said[-1].startswith("gallery/red_panda: done in ")
    assert (gallery / "boats.jpg").stat().st_mtime_ns == before
    recipes["red_panda"] |= {"why": "Better words.", "weights": {"style": 7}}
    recipes["boats"] |= {"why": "Better words."}
    script.main([], *folders)
    assert script.read(gallery / "red_panda.json")["settings"]["weights"]["style"] == 7
    assert (gallery / "boats.jpg").stat().st_mtime_ns == before
    assert not list(folders[1].rglob("*.pt"))


def test_a_trial_is_the_recipe_with_its_changes(script):
    recipe = {"sizes": [256, 512, 1024], "steps": [90, 80, 7], "title": "x", "coarse_content": 3}
    recipe["weights"] = {"style": 9}
    trials = {"flat": {"changes": {"coarse_content": 1}, "what": "coarse_content 1"}}
    pictures = script.plan({"cat": recipe | {"trials": trials}}, {})
    assert list(pictures) == ["gallery/cat", "figures/cat-recipe", "figures/cat-flat"]
    assert pictures["gallery/cat"] == {key: x for key, x in recipe.items() if key != "title"}
    smaller = {"sizes": [256, 512], "steps": [90, 50], "coarse_content": 3}
    smaller["weights"] = {"content": 3, "style": 9}  # the content counts as in the large picture
    assert pictures["figures/cat-recipe"] == smaller
    smaller |= {"coarse_content": 1, "weights": {"content": 1, "style": 9}}
    assert pictures["figures/cat-flat"] == smaller


def test_an_interrupted_run_goes_on_with_the_size_that_it_was_at(two, monkeypatch):
    script, _, _, folders = two
    follow, sizes = nst_studio.follow, []

    def interrupted(*args, **options):
        for step in follow(*args, **options):
            sizes.append(step.size)
            yield step
            if len(sizes) == 4:  # in the middle of the second size
                raise KeyboardInterrupt

    monkeypatch.setattr(script.nst_studio, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(["red_panda"], *folders)
    script.main(["red_panda"], *folders)
    assert sizes == [32, 32, 32, 48, 48, 48]
    record = script.read(folders[0] / "gallery/red_panda.json")
    assert {size: losses["steps"] for size, losses in record["losses"].items()} == {
        "32": 3,
        "48": 2,
    }
    monkeypatch.setattr(script.nst_studio, "follow", follow)
    picture = (folders[0] / "gallery/red_panda.jpg").read_bytes()
    (folders[0] / "gallery/red_panda.json").unlink()
    script.main(["red_panda"], *folders)
    assert (folders[0] / "gallery/red_panda.jpg").read_bytes() == picture


def test_the_film_has_frames_of_one_size(script, monkeypatch, tmp_path):
    """The heights of its two sizes have other roundings."""
    monkeypatch.setattr(script, "FILM_SIZES", (33, 50))
    monkeypatch.setattr(script, "FILM_STEPS", (2, 2))
    script.film(RECIPES["red_panda"], tmp_path / "film.webp")
    with Image.open(tmp_path / "film.webp") as film:
        assert (film.n_frames, film.height) == (4, script.HEIGHT)


def test_a_name_without_recipe_is_refused(two):
    script, *_, folders = two
    with pytest.raises(SystemExit, match=r"unknown: mona_lisa; .* are boats, red_panda"):
        script.main(["red_panda", "mona_lisa"], *folders)
