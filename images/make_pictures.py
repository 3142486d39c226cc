"""Paint the gallery, and the figures that notebooks do not paint live (`make pictures`).

usage: python images/make_pictures.py [NAME ...], by default all. Two files name the pictures:

- recipes.json: a recipe is a picture of gallery/, and each of its "trials", the recipe with some
  entries changed, is one of figures/, painted up to TRIAL_SIZE.
- figures.json: a figure is a row of pictures of figures/, its "variants". They share "settings".
  Either these are the entries of a recipe, or "function" names a notebook and one of its functions
  ("04_pixel_optimization:by_paper"), which paints with the other settings as arguments.

A JSON file beside every picture records the settings, the seconds, and the losses at the end of
every size. A picture is painted if it is missing or its settings have changed. An interrupted
recipe resumes at the size that it had reached; its finished sizes are kept in out/pictures. The run
uses a GPU if there is one. At the end it makes the film at the top of the README.
"""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat
import torch
from PIL import Image

import nst_helpers as nst
import nst_studio

IMAGES = Path(__file__).resolve().parent
NOTEBOOKS = IMAGES.parent / "notebooks"
LIMIT = 600_000  # bytes of a picture, at most
TRIAL_SIZE, TRIAL_STEPS = 512, 50  # a trial's largest long side, its steps there, at most
PERIOD = 10  # seconds between two lines of progress
FILM = "eiffel_tower"  # the recipe of the film in the README
FILM_SIZES, FILM_STEPS, HEIGHT, GAP = (128, 176, 224, 288), (80, 40, 40, 40), 192, 8


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def essence(recipe: dict) -> dict:
    """Return the entries of a recipe that change the picture."""
    return {key: value for key, value in recipe.items() if key not in nst_studio.WORDS}


def plan(recipes: dict, figures: dict) -> dict[str, dict]:
    """Return the settings of all pictures, {"gallery/NAME" or "figures/NAME-VARIANT": settings}."""
    settings = {f"gallery/{name}": essence(recipe) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        usual = {"recipe": {"changes": {}}} if recipe.get("trials") else {}  # to compare with
        for trial, entry in (usual | recipe.get("trials", {})).items():
            settings[f"figures/{name}-{trial}"] = beginning(essence(recipe) | entry["changes"])
    for name, figure in figures.items():
        for variant, changes in figure["variants"].items():
            settings[f"figures/{name}-{variant}"] = figure["settings"] | changes
    return settings


def beginning(settings: dict) -> dict:
    """Return the settings that paint the same picture up to TRIAL_SIZE, with fewer steps there.

    `nst.stylize` counts the content `coarse_content` times for each size that follows. The content
    weight makes up for the sizes that are left out.
    """
    sizes = [size for size in settings["sizes"] if size <= TRIAL_SIZE]
    steps = settings["steps"][: len(sizes)]
    left_out = len(settings["sizes"]) - len(sizes)
    weights = settings.get("weights", {})
    content = weights.get("content", 1) * settings.get("coarse_content", 2) ** left_out
    changes = {"weights": weights | {"content": content}}
    changes |= {"sizes": sizes, "steps": [*steps[:-1], min(steps[-1], TRIAL_STEPS)]}
    return settings | changes


@cache
def notebook(name: str) -> dict:
    """Return {name: value} of what a notebook's cells tagged "setup" define."""
    names = {}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if "setup" in cell.metadata.get("tags", ()):
            exec(compile(cell.source, f"{name}, cell {cell.id}", "exec"), names)
    return names


def begin(settings: dict, resume: torch.Tensor | None) -> Iterator[nst.Step]:
    """Return the steps that paint a picture; a recipe goes on from the picture `resume`."""
    if "function" not in settings:
        return nst_studio.follow(settings, IMAGES, resume=resume)
    name, function = settings["function"].split(":")
    arguments = {key: x for key, x in settings.items() if key != "function"}
    return notebook(name)[function](**arguments)


def is_painted(name: str, settings: dict, images: Path = IMAGES) -> bool:
    picture, record = images / f"{name}.jpg", images / f"{name}.json"
    return picture.is_file() and record.is_file() and read(record).get("settings") == settings


def jpeg(image: Image.Image) -> bytes:
    """Return the best JPEG of at most LIMIT bytes."""
    for quality in range(95, 20, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= LIMIT:
            return buffer.getvalue()
    raise ValueError(f"a picture of {image.width}×{image.height} px takes more than {LIMIT} bytes")


def say(text: str, last: bool = False) -> None:
    """Print a line of progress; in a terminal it replaces the line before."""
    if sys.stdout.isatty():
        print(f"\r{text:<78}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def work(settings: dict) -> int:
    """Return the work that a picture takes: the sum of size² over its steps."""
    return sum(n * size**2 for n, size in zip(settings["steps"], settings["sizes"], strict=True))


class Progress:
    """Estimates the minutes left, from the work to do and the seconds of the work done."""

    def __init__(self, todo: dict[str, dict]):
        self.left = sum(map(work, todo.values()))
        self.due, self.spent, self.done = 0.0, 0.0, 0

    def tell(self, name: str, settings: dict, step: nst.Step, seconds: float, done: int) -> None:
        """Print the progress now and then; `seconds` and `done` are time and work so far."""
        if seconds < self.due:
            return
        rate = (self.spent + seconds) / (self.done + done)
        rest = work(settings) * (1 - step.done)
        text = f"{name}: {step.done:4.0%}, {step.size} px, {rest * rate / 60:.1f} min left"
        say(f"{text}, {(self.left - work(settings) + rest) * rate / 60:.0f} min for all")
        self.due = seconds + PERIOD

    def finish(self, settings: dict, seconds: float, done: int) -> None:
        self.left, self.due = self.left - work(settings), 0.0
        self.spent, self.done = self.spent + seconds, self.done + done


def paint(name: str, settings: dict, progress: Progress, images: Path, folder: Path) -> None:
    """Paint one picture and write NAME.jpg and NAME.json; keep every finished size in `folder`."""
    kept, record, resume = folder / f"{name}.pt", {"settings": settings, "seconds": 0.0}, None
    record["losses"] = {}
    goes_on = kept.is_file() and "function" not in settings
    if goes_on and (found := torch.load(kept, weights_only=True))["settings"] == settings:
        resume = found.pop("image")
        record = found
    before, began, step, count, done = record["seconds"], time.monotonic(), None, 0, 0

    def keep() -> None:
        losses = {key: float(f"{loss:.4g}") for key, loss in step.losses.items()}
        record["losses"][str(step.size)] = {"steps": count, **losses}
        record["seconds"] = round(before + time.monotonic() - began, 1)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**record, "image": step.image}, kept)

    for new in begin(settings, resume):
        if step and step.size != new.size:
            keep()
            count = 0
        step, count, done = new, count + 1, done + new.size**2
        progress.tell(name, settings, step, time.monotonic() - began, done)
    keep()
    progress.finish(settings, time.monotonic() - began, done)
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    record["device"] = str(step.picture.device)
    if step.dtype:  # of the network; the steps of `optimize` alone have none
        record["dtype"] = str(step.dtype).split(".")[-1]
    # The record is written last: without it, the picture counts as not painted.
    (images / f"{name}.json").unlink(missing_ok=True)
    (images / name).parent.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.jpg").write_bytes(jpeg(nst.to_pil(step.image)))
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (images / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    kept.unlink()
    say(f"{name}: done in {record['seconds']:.0f} s", last=True)


def row(pictures: list[Image.Image]) -> Image.Image:
    """Return the pictures side by side, scaled to HEIGHT, with gaps of GAP pixels."""
    widths = [round(picture.width * HEIGHT / picture.height) for picture in pictures]
    result = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), HEIGHT), "white")
    left = 0
    for picture, width in zip(pictures, widths, strict=True):
        result.paste(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS), (left, 0))
        left += width + GAP
    return result


def film(recipe: dict, path: Path) -> None:
    """Write an animated image: the photograph, the picture while it is painted, the painting."""
    files = f"content/{recipe['content']}", f"style/{recipe['style']}"
    photo, painting = [Image.open(IMAGES / f"{file}.jpg").convert("RGB") for file in files]
    steps = nst_studio.follow(recipe, IMAGES, sizes=FILM_SIZES, steps=FILM_STEPS)
    frames = [
        row([photo, nst.to_pil(step.image).resize(photo.size), painting])
        for step in steps
        if step.index < 12 or step.index % 6 == 0 or step.done == 1
    ]
    times = [100] * (len(frames) - 1) + [4000]  # milliseconds
    options = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    buffer = io.BytesIO()  # a failure must not leave half a file
    frames[0].save(buffer, "WEBP", quality=70, method=6, **options)
    path.write_bytes(buffer.getvalue())


def main(names: list[str], images: Path = IMAGES, folder: Path = IMAGES.parent / "out/pictures"):
    recipes, figures = read(IMAGES / "recipes.json"), read(IMAGES / "figures.json")
    pictures = plan(recipes, figures)
    if unknown := [name for name in names if name not in {**recipes, **figures}]:
        there = ", ".join([*recipes, *figures])
        sys.exit(f"unknown: {', '.join(unknown)}; the recipes and figures are {there}")
    chosen = {
        name: settings
        for name, settings in pictures.items()
        if not names or name.split("/")[1].split("-")[0] in names
    }
    todo = {name: x for name, x in chosen.items() if not is_painted(name, x, images)}
    say(f"pictures: {len(chosen) - len(todo)} up to date, {len(todo)} to paint", last=True)
    progress = Progress(todo)
    for name, settings in todo.items():
        paint(name, settings, progress, images, folder)
    path = images / "readme.webp"
    if FILM in recipes and (f"gallery/{FILM}" in todo or not path.is_file()):
        film(recipes[FILM], path)


if __name__ == "__main__":
    os.chdir(NOTEBOOKS)  # their functions read ../images
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; `make pictures` resumes at the size that was reached")
