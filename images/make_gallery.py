"""Paint the gallery: every recipe of recipes.json, as large as it says (`make gallery`).

usage: python images/make_gallery.py [NAME ...], by default all. Beside every picture in gallery/
stands a JSON file with its recipe, the seconds it took and the losses at the end of every size. A
picture whose recipe has not changed since is not painted again, so an interrupted run goes on with
the picture that it was interrupted at. At the end the row on top of the README is put together.
"""

import io
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image

import nst_helpers as nst
import nst_studio

IMAGES = Path(__file__).resolve().parent
LIMIT = 300_000  # bytes of a picture, at most
ROW = ("starry_night", 320)  # whose pictures stand on top of the README, and how high


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def essence(recipe: dict) -> dict:
    """Return what of a recipe changes the picture."""
    return {key: value for key, value in recipe.items() if key not in ("title", "why")}


def is_painted(name: str, recipe: dict, gallery: Path) -> bool:
    picture, record = gallery / f"{name}.jpg", gallery / f"{name}.json"
    return (
        picture.is_file()
        and record.is_file()
        and essence(read(record)["recipe"]) == essence(recipe)
    )


def jpeg(image: Image.Image, limit: int = LIMIT) -> bytes:
    """Return the best JPEG of at most `limit` bytes."""
    for quality in range(95, 20, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    raise ValueError(f"no JPEG of {image.size[0]}×{image.size[1]} fits into {limit} bytes")


def say(text: str, last: bool = False) -> None:
    """Write a line of progress: over the one before in a terminal, below it in a log."""
    if sys.stdout.isatty():
        print(f"\r{text:<78}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def paint(name: str, recipe: dict, gallery: Path, every: float = 10) -> None:
    """Paint one recipe and write NAME.jpg and NAME.json; progress every so many seconds."""
    losses, began, due = {}, time.monotonic(), 0.0
    for step in nst_studio.follow(recipe, IMAGES):
        seconds = time.monotonic() - began
        losses[step.size] = {"steps": losses.get(step.size, {"steps": 0})["steps"] + 1}
        losses[step.size] |= {key: float(f"{loss:.4g}") for key, loss in step.losses.items()}
        if seconds >= due:
            left = seconds / step.done - seconds
            say(f"{name}: {step.done:4.0%}, {step.size} px, about {left:.0f} s left")
            due = seconds + every
    record = {
        "recipe": recipe,
        "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "device": str(step.picture.device),
        "dtype": str(step.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "losses": losses,
    }
    # The record goes last: without it, the picture counts as not painted.
    (gallery / f"{name}.json").unlink(missing_ok=True)
    (gallery / f"{name}.jpg").write_bytes(jpeg(nst.to_pil(step.image)))
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (gallery / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    total = losses[step.size]["total"]
    say(f"{name}: done in {record['seconds']:.0f} s, loss {total:.3g}", last=True)


def put_row_together(name: str, recipe: dict, height: int, gallery: Path) -> Image.Image:
    """Return photograph, painted picture and painting side by side."""
    paths = (
        IMAGES / f"content/{recipe['content']}.jpg",
        gallery / f"{name}.jpg",
        IMAGES / f"style/{recipe['style']}.jpg",
    )
    parts = []
    for path in paths:
        with Image.open(path) as picture:
            width = round(picture.width * height / picture.height)
            parts.append(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    gap = 8
    row = Image.new("RGB", (sum(part.width + gap for part in parts) - gap, height), "white")
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + gap
    return row


def main(names: list[str], gallery: Path = IMAGES / "gallery") -> None:
    recipes = read(IMAGES / "recipes.json")
    if unknown := [name for name in names if name not in recipes]:
        sys.exit(f"no recipe for {', '.join(unknown)}; there are {', '.join(recipes)}")
    gallery.mkdir(exist_ok=True)
    for name in names or recipes:
        if is_painted(name, recipes[name], gallery):
            say(f"{name}: painted already, by the same recipe", last=True)
        else:
            paint(name, recipes[name], gallery)
    name, height = ROW
    if name in recipes and is_painted(name, recipes[name], gallery):
        row = put_row_together(name, recipes[name], height, gallery)
        (IMAGES / "readme.jpg").write_bytes(jpeg(row))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; `make gallery` goes on with this picture")
