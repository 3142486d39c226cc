"""The parts of the studio's panel: its look, sliders, thumbnails to choose from, and curves."""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor

import nst_helpers as nst

KNOBS = {  # label, lowest, highest; where the lowest is above 0, the scale is logarithmic
    "style": ("style weight (β)", 1, 1000),
    "content": ("content weight (α)", 0, 5),
    "tv": ("smoothness (γ)", 0, 100),
}
EFFECTS = "colours", "dabs", "short strokes", "long strokes", "large forms"
KNOBS |= {f"relu{n}_1": (f"{x} (relu{n}_1)", 0.002, 20) for n, x in enumerate(EFFECTS, start=1)}
STARTS = [("photograph in the painting's colours", "matched"), ("photograph", "content")]
STARTS += [("painting", "style"), ("noise", "noise")]
CHOSEN = {"content", "style", "init", "keep_colors", "weights", "layers"}  # by controls
CHOSEN |= {"sizes", "steps", "title", "why", "trials"}  # or not used here
HINT = "Drag a slider or choose another picture: the painting obeys at its next step."
ALT = (
    "The studio. On the left a painting; below it buttons, two curves of the losses, and kept "
    "pictures. On the right photographs, paintings, menus, and sliders for weights and layers."
)
CSS = """<style>
.nst { --nst: #2b5f8f; max-width: 1000px; flex-flow: row wrap; gap: 8px 28px; padding: 3px; }
.nst, .nst .widget-box, .nst .widget-html-content { overflow: visible; }
.nst-easel { flex: 3 1 440px; max-width: 720px; gap: 6px; }
.nst-controls { flex: 2 1 390px; min-width: 0; max-width: 720px; gap: 4px; }
.nst-canvas { width: 100%; aspect-ratio: 3 / 2; object-fit: contain; background: #8882; margin: 0; }
.nst-row { width: 100%; flex-flow: row wrap; gap: 6px; align-items: center; }
.nst .jupyter-button { width: auto; height: 28px; margin: 0; border-radius: 4px; }
.nst .nst-primary { min-width: 84px; color: white; background: var(--nst); font-weight: 600; }
.nst button:focus-visible, .nst label:focus-within { outline: 2px solid var(--nst); }
.nst .widget-html { width: 100%; margin: 0; font-size: 12px; }
.nst .widget-html-content { line-height: 16px; }
.nst a { color: var(--jp-content-link-color, #2b5f8f); text-decoration: underline; }
.nst .nst-message { min-height: 34px; }
.nst h4 { margin: 6px 0 2px; border-bottom: 1px solid #8884; font-size: 13px; line-height: 20px; }
.nst svg { max-width: 540px; }
.nst svg text { font-size: 11px; fill: currentColor; }
.nst progress { width: 110px; height: 10px; accent-color: var(--nst); }
.nst-knob { width: 100%; gap: 10px; align-items: center; }
.nst-knob .widget-text { display: contents; }
.nst .nst-knob .widget-text .widget-label { order: 1; width: 152px; text-align: left; margin: 0; }
.nst .nst-knob .widget-slider { order: 2; flex: 1; width: auto; min-width: 60px; margin: 0; }
.nst .nst-knob .widget-text input { order: 3; flex: none; width: 64px; }
.nst .nst-reset { order: 4; width: 24px; padding: 0; background: none; font-size: 0; }
.nst-reset::before { content: "↺"; content: "↺" / ""; font-size: 16px; }
.nst-usual { opacity: 0.25; }
.nst .nst-menu { flex-flow: column; width: 100%; height: auto; min-height: 61px; margin: 0; }
.nst-menu > .widget-label { width: auto; height: 17px; margin: 0; font-size: 12px; }
.nst-menu input { position: absolute; opacity: 0; }
.nst .nst-menu .widget-radio-box { flex-flow: row wrap; gap: 4px; margin: 0 0 4px !important; }
.nst .nst-menu .widget-radio-box label { position: relative; width: 59px; height: 44px; margin: 0;
  background-size: cover; background-position: center; border-radius: 4px; font-size: 0; }
.nst-menu label:has(:checked) { box-shadow: 0 0 0 2px white, 0 0 0 4px var(--nst); }
.nst-menu label:has(:checked)::after { content: "✓"; content: "✓" / ""; padding: 0 3px;
  position: absolute; right: 0; bottom: 0; color: white; background: var(--nst);
  font: bold 12px/16px sans-serif; }
.nst .widget-upload { font-size: 0; }
.nst .widget-upload::after { content: attr(title); content: attr(title) / ""; }
.nst .widget-upload > i, .nst .widget-upload::after { font-size: 13px; }
.nst .widget-dropdown { width: 100%; margin: 0; }
.nst .widget-dropdown .widget-label { width: 104px; text-align: left; }
.nst .widget-checkbox { width: auto; margin: 0 10px 0 0; }
.nst .widget-checkbox input { margin: 0 8px 2px 0; vertical-align: middle; }
</style>"""
# ipywidgets gives the handle of a slider no name for screen readers; this copies that of its box.
NAMES = """<img hidden src="data:," onerror="for (const s of [500, 3000]) setTimeout(() => {
for (const row of document.querySelectorAll('.nst-knob')) row.querySelector('[role=slider]')
?.setAttribute('aria-label', row.querySelector('label').textContent) }, s)">"""


def encode(image: Tensor, kind: str = "JPEG", **options) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    nst.to_pil(image).save(buffer, kind, **options)
    return buffer.getvalue()


def beside(photo: Tensor, image: Tensor, share: float) -> Tensor:
    """Return a picture whose left `share` is the photograph, up to a white line."""
    edge = round(image.shape[-1] * share)
    photo = nst.resize(photo, image.shape[-2:])
    image = torch.cat([photo[..., :edge], image[..., edge:]], dim=-1)
    image[..., max(edge - 1, 0) : edge + 1] = 1
    return image


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def weights_of(recipe: Mapping) -> dict[str, float]:
    """Return the eight weights of a recipe, with defaults for those that it leaves out."""
    usual = asdict(nst.Weights())
    usual |= usual.pop("layers")
    return {**usual, **recipe.get("weights", {}), **recipe.get("layers", {})}


def row(*parts: widgets.Widget) -> widgets.Box:
    return widgets.Box(parts).add_class("nst-row")


class Knob:
    """A number with a name: a box, a slider beside it, and a button back to the usual value.

    The box holds the number. The slider has a hundred places and stands at the nearest one. The
    left end of a logarithmic scale stands for 0.
    """

    def __init__(self, label: str, low: float, high: float, usual: float):
        self.usual, self.low, self.log = usual, low, low > 0
        kind = widgets.FloatLogSlider if self.log else widgets.FloatSlider
        ends = self.place(low), self.place(high)
        self.step = (ends[1] - ends[0]) / 100
        self.slider = kind(usual, min=ends[0], max=ends[1], step=self.step, readout=False)
        step = None if self.log else self.step
        self.box = widgets.BoundedFloatText(usual, min=0, max=high, step=step, description=label)
        self.back = widgets.Button(description=f"reset {label}", tooltip=f"back to {usual:g}")
        self.back.add_class("nst-reset").add_class("nst-usual")
        self.slider.observe(self._slid, "value")
        self.box.observe(self._typed, "value")
        self.back.on_click(lambda _: self.box.set_trait("value", usual))
        self.row = widgets.Box([self.box, self.slider, self.back]).add_class("nst-knob")

    def place(self, number: float) -> float:
        """Return where on the slider a number is."""
        return math.log10(max(number, self.low)) if self.log else number

    def _slid(self, change) -> None:
        if abs(self.place(change.new) - self.place(self.box.value)) > 0.51 * self.step:
            number = 0 if self.log and change.new < 1.01 * self.low else change.new  # rounded
            self.box.value = float(f"{number:.3g}")

    def _typed(self, change) -> None:
        if abs(self.place(change.new) - self.place(self.slider.value)) > 0.51 * self.step:
            self.slider.value = max(change.new, self.low)
        mark = self.back.add_class if change.new == self.usual else self.back.remove_class
        mark("nst-usual")


class Chooser:
    """Pictures to choose from, by thumbnails. `sources` maps names to files, bytes or pictures."""

    def __init__(self, label: str):
        self.label, self.sources, self.urls, self.busy = label, {}, [], False
        self.menu = widgets.RadioButtons(description=label)
        self.menu.add_class("nst-menu").add_class(f"nst-{label}")
        self.style = widgets.HTML(layout={"display": "none"})
        self.upload = widgets.FileUpload(accept="image/*", description=f"own {label}")
        self.upload.tooltip = self.upload.description  # CSS shows the tooltip

    def add(self, sources: Mapping, chosen: str | None = None) -> None:
        """Add {name: file, the bytes of a file, or picture}, and choose one."""
        for source in sources.values():
            small = source
            if not isinstance(source, Tensor):
                with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as file:
                    file.draft("RGB", (112, 112))  # reads a JPEG at a fraction of its size
                    small = nst.load_image(file)
            self.urls.append(data_url(encode(nst.resize(small, 112)), "jpeg"))
        self.sources |= sources
        self.busy = True  # new options choose the first one
        self.menu.options, self.menu.value = list(self.sources), chosen
        self.busy = False
        rules = (
            f".nst-{self.label} div label:nth-of-type({n}) {{ background-image: url({url}) }}"
            for n, url in enumerate(self.urls, start=1)
        )
        self.style.value = f"<style>{''.join(rules)}</style>"

    def choose(self, name: str, image: Tensor) -> str:
        """Choose an uploaded picture, added if it is not there yet; return its name."""
        uploads = {key: x for key, x in self.sources.items() if isinstance(x, Tensor)}
        same = [key for key, x in uploads.items() if torch.equal(x, image)]
        while not same and name in self.sources:
            name = f"another {name}"
        if not same:
            self.add({name: image}, chosen=self.menu.value)
        self.menu.value = same[0] if same else name
        return self.menu.value

    @property
    def source(self):
        return self.sources[self.menu.value]

    def picture(self) -> Tensor:
        return self.source if isinstance(self.source, Tensor) else nst.load_image(self.source)


def chart(losses: list[tuple]) -> str:
    """Return SVG with both curves; `losses` has (size, content lost, style missing) per step."""

    def x(step: int) -> str:
        return f"{44 + 340 * step / max(len(losses) - 1, 1):.1f}"

    def y(share: float) -> str:  # from 200 % at the top to 0.5 % at the bottom
        return f"{8 + 92 * math.log(2 / min(max(share, 0.005), 2)) / math.log(400):.1f}"

    parts, words = [], []
    for share in (1, 0.1, 0.01):
        parts.append(f'<path d="M44 {y(share)}h340" stroke="#8886"/>')
        parts.append(f'<text x="40" y="{y(share)}" dy="4" text-anchor="end">{share:.0%}</text>')
    shown = [*range(0, len(losses), len(losses) // 200 + 1), len(losses) - 1]
    looks = (1, "content lost", "#2a78b5", ""), (2, "style missing", "#c2571a", "5 3")
    for n, word, color, dashes in looks:
        words.append(f"{word} {losses[-1][n]:.1%}")
        points = " ".join(f"{x(i)},{y(losses[i][n])}" for i in shown)
        look = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{points}" {look}/>')
        parts.append(f'<path d="M396 {22 * n}h24" {look}/>')
        parts.append(f'<text x="426" y="{22 * n + 4}">{words[-1]}</text>')
    free = 0.0  # where the next label has room
    for i, (size, *_) in enumerate(losses):
        if (i == 0 or losses[i - 1][0] != size) and float(x(i)) >= free:
            parts.append(f'<text x="{x(i)}" y="114">{size} px</text>')
            free = float(x(i)) + 50
    text = f"{len(losses)} steps: share of {', share of '.join(words)}"
    return f'<svg viewBox="0 0 540 118" role="img" aria-label="{text}">{"".join(parts)}</svg>'


class Panel:
    """The widgets of the studio, and their settings in the form of a recipe.

    `extras` are entries of a recipe for which there is no control.
    """

    def __init__(self, images: Path, finish: int):
        self.extras = {}
        self.canvas = widgets.Image(format="jpeg").add_class("nst-canvas")
        self.status, self.message, self.chart = (widgets.HTML() for _ in range(3))
        names = "Paint", "Start over", "Keep", f"Finish at {finish} px", "Save"
        self.buttons = [widgets.Button(description=name, tooltip=name) for name in names]
        self.split, self.kept = Knob("show photograph, %", 0, 100, 0), Chooser("kept")
        usual = weights_of({})
        self.knobs = {name: Knob(*look, usual[name]) for name, look in KNOBS.items()}
        self.choosers = {"content": Chooser("photograph"), "style": Chooser("painting")}
        for kind, first in (("content", "temple"), ("style", "starry_night")):
            files = {file.stem: file for file in sorted((images / kind).glob("*.*"))}
            self.choosers[kind].add(files, first)
        recipes = json.loads((images / "recipes.json").read_text(encoding="utf-8")).values()
        recipes = [("choose one", ""), *((recipe["title"], recipe) for recipe in recipes)]
        self.recipe = widgets.Dropdown(options=recipes, value="", description="recipe")
        self.second = widgets.Dropdown(options=["none"], description="second painting")
        painting = (self.choosers["style"].menu, "options")
        widgets.dlink(painting, (self.second, "options"), lambda names: ["none", *names])
        self.init = widgets.Dropdown(options=STARTS, description="start from")
        texts = "keep the photograph's colours", "paint over the old picture"
        self.colors, self.over = (widgets.Checkbox(description=x, indent=False) for x in texts)
        looks = widgets.HTML(CSS + NAMES, layout={"display": "none"})
        self.widget = widgets.Box([looks, self._easel(), self._controls()]).add_class("nst")

    def _easel(self) -> widgets.VBox:
        self.buttons[0].add_class("nst-primary")
        message = self.message.add_class("nst-message")
        parts = [self.canvas, row(*self.buttons), self.status, message, self.split.row, self.chart]
        return widgets.VBox([*parts, self.kept.menu, self.kept.style]).add_class("nst-easel")

    def _controls(self) -> widgets.VBox:
        photos, paintings = self.choosers.values()
        heads = [widgets.HTML(f"<h4>{text}</h4>") for text in ("Pictures", "Balance", "Layers")]
        pictures = [photos.menu, paintings.menu, row(photos.upload, paintings.upload)]
        pictures += [self.second, self.recipe, self.init, row(self.colors, self.over)]
        rows = [knob.row for knob in self.knobs.values()]
        parts = [heads[0], *pictures, heads[1], *rows[:3], heads[2], *rows[3:]]
        parts += [photos.style, paintings.style]
        return widgets.VBox(parts).add_class("nst-controls")

    def on(self, control: widgets.Widget, action: Callable) -> None:
        """Have a control call `action`, and show errors here; Jupyter would hide them in a log."""

        def call(event):
            try:
                action(event)
            except Exception as error:
                self.say(str(error))

        button = isinstance(control, widgets.Button)
        control.on_click(call) if button else control.observe(call, "value")

    def say(self, text: str = HINT, link: str = "") -> None:
        self.message.value = f'<span role="status">{html.escape(text)}</span>{link}'

    def settings(self) -> dict:
        """Return what is chosen, in the form of a recipe."""
        numbers = {name: knob.box.value for name, knob in self.knobs.items()}
        layers = {name: numbers.pop(name) for name in nst.STYLE_LAYERS}
        chosen = {kind: chooser.menu.value for kind, chooser in self.choosers.items()}
        chosen |= {"init": self.init.value, "keep_colors": self.colors.value}
        return {**chosen, "weights": numbers, "layers": layers, **self.extras}

    def apply(self, recipe: Mapping) -> None:
        """Set the controls to a recipe; entries that it leaves out get their default."""
        second = next((entry["style"] for entry in recipe.get("others", ())), "none")
        menus = [*(chooser.menu for chooser in self.choosers.values()), self.second]
        chosen = [*zip(menus, (recipe["content"], recipe["style"], second), strict=True)]
        for menu, name in chosen:
            if name not in menu.options:
                raise ValueError(f"{name} is not here; upload it first, then try again.")
        for menu, name in chosen:
            menu.value = name
        for name, weight in weights_of(recipe).items():
            self.knobs[name].box.value = weight
        self.init.value = recipe.get("init", "matched")
        self.colors.value = recipe.get("keep_colors", False)
        self.extras = {key: x for key, x in recipe.items() if key not in CHOSEN}
