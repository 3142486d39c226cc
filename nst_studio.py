"""The studio of notebook 05: a worker that paints in the background, and a panel that steers it."""

import atexit
import html
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path

from IPython.display import display
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import nst_helpers as nst
from nst_panel import ALT, Chooser, Panel, beside, chart, data_url, encode

IMAGES = Path(__file__).resolve().parent / "images"
WORDS = ("title", "why", "trials")  # entries of a recipe that do not change the picture
PAINTING = {"style": "image", "mask": "mask", "source": "source"}  # entry: field of `Style`
PAINTING |= {"style_weight": "weight", "style_scale": "scale", "only": "layers"}


def follow(recipe: Mapping, images: str | Path, **changes) -> Iterator[nst.Step]:
    """Return the steps of `stylize` for a recipe of images/recipes.json; `images` is that folder.

    "content" and "style" name files in its folders, .jpg if they have no ending; "keep_colors"
    gives the painting the photograph's colours first; "weights" and "layers" go to `Weights`, and
    what they leave out keeps its default; "pooling" is that of the network. "mask" and "source"
    name files in masks/ and go to `Style`, as do "style_weight", "style_scale" and "only", the
    layers; "others" are further paintings with the same entries. All else but WORDS goes to
    `stylize`. `changes` replace entries.
    """
    recipe = {key: x for key, x in {**recipe, **changes}.items() if key not in WORDS}
    if pooling := recipe.pop("pooling", None):
        recipe["vgg"] = nst.load_vgg19(pooling=pooling).to(nst.best_device())
    content = _load(images, "content", recipe["content"])
    paintings = styles(recipe, images, content if recipe.get("keep_colors") else None)
    weights = nst.Weights(**recipe.pop("weights", {}))
    weights.layers |= recipe.pop("layers", {})
    done = {"content", "others", "keep_colors", *PAINTING}
    options = {key: x for key, x in recipe.items() if key not in done}
    return nst.stylize(content, paintings, weights=weights, **options)


def _load(images: str | Path, kind: str, name: str | Path | Tensor) -> Tensor:
    if isinstance(name, Tensor):  # an upload
        return name
    file = Path(images, kind, name)
    return nst.load_image(file if file.suffix else file.with_suffix(".jpg"))


def styles(recipe: Mapping, images: str | Path, colors: Tensor | None = None) -> list[nst.Style]:
    """Return the `Style` of each painting of a recipe, in the colours of a picture if given."""
    found = []
    for entry in [recipe, *recipe.get("others", ())]:
        fields = {PAINTING[key]: x for key, x in entry.items() if key in PAINTING and x is not None}
        fields["image"] = _load(images, "style", fields["image"])
        if colors is not None:
            fields["image"] = nst.match_colors(fields["image"], colors)
        for key in {"mask", "source"} & fields.keys():
            fields[key] = nst.load_mask(Path(images, "masks", f"{fields[key]}.png"))
        found.append(nst.Style(**fields))
    return found


class Live:
    """Makes steps in a background thread, so that the cell ends and its sliders stay alive.

    `begin(picture)` returns the steps, usually those of `stylize`; `picture` is the one to go on
    from, or None for a fresh start. The worker calls `show(live)` after every step and before every
    rest; it reads `live.step`, `live.state` ("painting", "paused", "done" after the last step, or
    "failed") and `live.error`. A kernel has one worker thread. A Live that is new, or gets work,
    takes the thread from the Live before, which then rests.
    """

    _news = threading.Condition()  # guards all that follows; notified when there is work or a rest
    _thread: threading.Thread | None = None
    _current: "Live | None" = None  # whose steps the worker makes
    _busy: "Live | None" = None  # whose step it is making right now

    def __init__(self, begin: Callable, show: Callable = lambda live: None):
        self.begin, self.show = begin, show
        self.step: nst.Step | None = None
        self.picture: Tensor | None = None  # what `begin` goes on from
        self.error: BaseException | None = None
        self._going, self._done, self._steps = False, False, None
        self._asked = 0  # how often other steps were asked for
        self._context = copy_context()  # so what `show` prints goes to the cell that made this Live
        self._ask(going=False)

    @property
    def state(self) -> str:
        rest = "done" if self._done else "paused"
        return "failed" if self.error else "painting" if self._going else rest

    def start(self) -> None:
        """Paint on until `pause` or the last step; if it is painting already, do nothing."""
        self._ask()

    def pause(self) -> None:
        """Rest after the step in progress; a rest costs no computing."""
        with Live._news:
            self._going = False

    def go_on(self) -> None:
        """Call `begin` again with the last picture, and paint."""
        self._ask(again=True)

    def restart(self, picture: Tensor | None = None, paint: bool = True) -> None:
        """Call `begin` with `picture`, or with None for a fresh start, and paint.

        If `paint` is False, the worker rests until `start` is called.
        """
        with Live._news:
            self.picture, self.step, self._going = picture, None, False
            self._ask(going=paint, again=True)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the worker rests, or `timeout` seconds; raise the error that stopped it."""
        if threading.current_thread() is Live._thread:
            raise RuntimeError("`show` is called by the worker, which cannot wait for itself")
        with Live._news:
            Live._news.wait_for(lambda: not self._has_work() and Live._busy is not self, timeout)
        if self.error:
            raise self.error

    @atexit.register  # torch aborts the process if it ends in the middle of a step
    @staticmethod
    def _end() -> None:
        with Live._news:
            Live._current = None
            Live._news.wait_for(lambda: Live._busy is None)

    def _has_work(self) -> bool:
        return Live._current is self and self._going

    def _ask(self, going: bool = True, again: bool = False) -> None:
        with Live._news:
            if Live._current not in (None, self):
                Live._current._going = False
            Live._current, self.error, self._done = self, None, False
            self._going = self._going or going
            if again:
                self._steps, self._asked = None, self._asked + 1
            if Live._thread is None and self._going:
                Live._thread = threading.Thread(target=Live._work, name="nst.Live", daemon=True)
                Live._thread.start()
            Live._news.notify_all()

    @staticmethod
    def _work() -> None:
        while True:
            with Live._news:
                Live._news.wait_for(lambda: Live._current and Live._current._has_work())
                Live._busy = Live._current
            Live._busy._context.run(Live._busy._paint)
            with Live._news:
                Live._busy = None
                Live._news.notify_all()

    def _paint(self) -> None:
        try:
            while self._has_work():
                self._make_step()
                time.sleep(0.002)  # lets the thread that receives the sliders' values run
            self.show(self)
        except BaseException as error:  # even exit(), which would end the thread silently
            self.error, self._going, self._steps = error, False, None
            with suppress(BaseException):  # `show` itself may be what fails
                self.show(self)

    def _make_step(self) -> None:
        with Live._news:
            asked, steps, picture = self._asked, self._steps, self.picture
        try:
            steps = iter(self.begin(picture)) if steps is None else steps
            step = next(steps, None)
        except Exception:
            if self._asked == asked:
                raise
            return
        with Live._news:
            if self._asked != asked:  # other steps were asked for meanwhile
                return
            if step is None:
                self._steps, self._going, self._done = None, False, True
                return
            self.step, self.picture, self._steps = step, step.picture, steps
        self.show(self)


class Studio(Panel):
    """The panel of notebook 05. It is shown, and paints, as soon as it is made.

    It paints at `sizes`, long sides in pixels, one after the other, and finishes at `finish`. The
    methods that controls call store what was chosen; the worker of `live` reads it at its next
    step. Code that changes the picture on show holds `lock`. A kept or saved picture is a PNG file
    that also holds its settings, and how they changed while it was painted.
    """

    def __init__(self, sizes=(96, 192, 384), finish: int = 1024):
        super().__init__(IMAGES, finish)
        self.sizes, self.finish, self.weights, self.networks = [*sizes], finish, nst.Weights(), {}
        self.image, self.losses, self.path, self.known = None, [], [], {}
        self.last, self.due, self.began, self.finishing = None, 0.0, None, False
        self.lock = threading.RLock()
        self.live = Live(self.begin, self.renew)
        self._connect()
        self.say()
        self.live.start()
        still = (IMAGES / "studio.jpg").read_bytes()  # for readers without a kernel
        bundle = {**self.widget._repr_mimebundle_(), "text/plain": ALT, "image/jpeg": still}
        display(bundle, raw=True, metadata={"image/jpeg": {"alt": ALT}})

    def _connect(self) -> None:
        actions = self.paint, self.start_over, self.keep, self.finish_it, self.save
        for button, action in zip(self.buttons, actions, strict=True):
            self.on(button, action)
        for name, knob in self.knobs.items():
            self.on(knob.box, partial(self.store, name))
        for chooser in self.choosers.values():
            self.on(chooser.menu, self.changed)
            self.on(chooser.upload, partial(self.receive, chooser))
        for menu in (self.second, self.init, self.colors):
            self.on(menu, self.changed)
        self.on(self.recipe, self.use_recipe)
        self.on(self.split.box, self.draw)
        self.on(self.kept.menu, self.go_back)

    # Called by the controls, with the change or the button as argument.

    def store(self, name: str, change) -> None:
        """Store a weight, for the worker to read at its next step; wake it if it rests."""
        if name in self.weights.layers:
            self.weights.layers[name] = change.new
        else:
            setattr(self.weights, name, change.new)
        if self.live.state == "done" and self.last.size < self.finish:
            self.live.start()

    def changed(self, change) -> None:
        """Begin afresh, or let another painting go on over the old picture."""
        if any(chooser.busy for chooser in self.choosers.values()):
            return
        if change.owner not in (self.init, self.colors):
            self.extras = {}  # masks belong to the pictures of a recipe
            if self.second.value != "none":
                half = {"style_weight": 0.5}
                self.extras = {**half, "others": [{"style": self.second.value, **half}]}
        if change.owner not in (self.init, self.choosers["content"].menu) and self.over.value:
            self.began = None
            self.live.go_on()
            self.tell()
        else:
            self.start_over()
        self.say()

    def start_over(self, _=None) -> None:
        with self.lock:
            self.live.restart()
            self.finishing, self.path, self.known, self.losses = False, [], {}, []
        self.tell()

    def paint(self, _=None) -> None:
        if self.live.state == "painting":
            self.live.pause()
        else:
            self.began = None
            self.live.start()
        self.tell()

    def finish_it(self, _=None) -> None:
        """Paint on at larger sizes or, if that is under way, stop."""
        self.finishing, self.began = not self.finishing, None
        if self.finishing:
            self.live.go_on()
        else:
            self.live.restart(self.live.picture, paint=False)
        self.tell()

    def keep(self, _=None) -> None:
        """Put the picture on show into the strip."""
        content = self.png()
        name = f"{self.known['content']} in {self.known['style']}, {max(self.image.shape)} px"
        self.kept.add({f"{len(self.kept.sources) + 1}: {name}": content})

    def png(self) -> bytes:
        """Return the picture on show as a file, with its settings and their path as text."""
        with self.lock:
            if self.image is None:
                raise ValueError("There is no picture yet.")
            self.note_settings(max(self.image.shape))
            info = PngInfo()
            info.add_text("nst", json.dumps({"settings": self.known, "path": self.path}))
            return encode(self.image, "PNG", pnginfo=info)

    def save(self, _=None) -> None:
        """Offer the picture on show as a download."""
        content = self.png()
        name = html.escape(f"{self.known['content']}-{self.known['style']}-{len(self.losses)}.png")
        link = f'<a download="{name}" href="{data_url(content, "png")}">Download {name}</a>'
        self.say("", f"{link} ({len(content) / 1e6:.1f} MB, with its settings)")

    def go_back(self, change) -> None:
        """Show a kept picture, with all controls as they were; painting goes on from there."""
        if change.new is None or self.kept.busy:
            return
        self.kept.menu.value = None  # otherwise it could not be chosen again
        content = self.kept.sources[change.new]
        with Image.open(io.BytesIO(content)) as file:
            record = json.loads(file.text["nst"])
        self.apply(record["settings"])
        with self.lock:
            self.image, self.finishing = nst.load_image(content), False
            self.live.restart(self.image, paint=False)
            self.path, self.known = record["path"], record["settings"]
            self.draw()
        self.tell()

    def receive(self, chooser: Chooser, change) -> None:
        """Choose an uploaded picture, or go back to one that was saved here."""
        for name, content in ((file["name"], bytes(file["content"])) for file in change.new):
            try:
                image = nst.load_image(content)
            except ValueError:
                self.say(f"{name} is not a picture that can be read; nothing has changed.")
                continue
            if b"tEXtnst\0" in content:  # written by `png`
                name = f"{len(self.kept.sources) + 1}: {name}"
                self.kept.add({name: content})
                self.kept.menu.value = name
            else:
                name = chooser.choose(name, nst.resize(image, min(self.finish, max(image.shape))))
                self.say(f"{name} is chosen.")
        chooser.upload.value = ()  # otherwise choosing the same file again would do nothing

    def use_recipe(self, change) -> None:
        """Set all controls to a recipe, and begin afresh."""
        if recipe := change.new:
            self.recipe.value = ""  # otherwise it could not be chosen again
            self.apply(recipe)
            self.start_over()
            self.say(recipe["why"])

    def note_settings(self, size: int) -> None:
        """Add to the path which settings have changed, in the form of a recipe."""
        now = self.settings()
        keys = [key for key in {**self.known, **now} if now.get(key) != self.known.get(key)]
        if changed := {key: now.get(key) for key in keys}:
            self.path.append({"step": len(self.losses), "size": size, **changed})
        self.known = now

    # What the worker calls.

    def begin(self, picture: Tensor | None) -> Iterator[nst.Step]:
        """Return the steps for the chosen settings, afresh or from `picture`."""
        options = {"weights": self.weights, "init": self.init.value}
        others = {"pooling", "others", *PAINTING}
        options |= {key: x for key, x in self.extras.items() if key not in others}
        pooling = self.extras.get("pooling", "avg")
        if pooling not in self.networks:
            vgg = nst.load_vgg19(pooling=pooling).to(nst.best_device())
            self.networks[pooling] = nst.fast_copy(vgg)
        photo, paintings = self.choosers["content"].picture(), self.choosers["style"]
        others = self.extras.get("others", ())
        others = [{**entry, "style": paintings.sources[entry["style"]]} for entry in others]
        recipe = {**self.extras, "style": paintings.source, "others": others}
        painting = styles(recipe, IMAGES, photo if self.colors.value else None)
        sizes, steps = self.sizes, [100] * (len(self.sizes) - 1) + [300]
        if self.finishing:
            larger = [size for size in (self.finish * 5 // 8, self.finish) if size > sizes[-1]]
            sizes, steps = sizes + larger, [100] * len(sizes) + [60, 40]
        if picture is not None and max(picture.shape) >= sizes[-1]:  # paint on at that size
            sizes, steps, options["init"] = sizes[-1:], steps[-1:], picture
        elif picture is not None:
            options["resume"] = picture.cpu()
        options |= {"vgg": self.networks[pooling], "sizes": sizes, "steps": steps}
        return nst.stylize(photo, painting, **options)

    def renew(self, live: Live) -> None:
        """Note a new step; renew picture, curves and status, at most eight times a second."""
        with self.lock:
            step, now = live.step, time.monotonic()
            if step is not None and step is not self.last:
                self.note(step)
            if live.state == "painting" and now < self.due:
                return
            self.due = now + 1 / 8
            if step is not None:
                self.image = step.image
                self.draw()
                self.chart.value = chart(self.losses)
            if live.state == "done" and self.finishing:
                self.finishing = False
                self.keep()
            self.tell()

    def note(self, step: nst.Step) -> None:
        """Keep the losses of a step and the settings that were changed for it."""
        whole = sum(self.weights.layers.values()) or 1  # a slider alone must not move the curve
        self.losses.append((step.size, step.losses["content"], step.losses["style"] / whole))
        self.last, self.began = step, self.began or (time.monotonic(), step.done)
        self.note_settings(step.size)

    def draw(self, _=None) -> None:
        """Show the picture and, on the left of it, the chosen share of the photograph."""
        with self.lock:
            if (image := self.image) is None:
                return
            if share := self.split.box.value / 100:
                image = beside(self.choosers["content"].picture(), image, share)
            self.canvas.value = encode(image, quality=90)

    def tell(self) -> None:
        """Write the status line, and the two buttons whose names change."""
        with self.lock:
            state, step, bar = self.live.state, self.last, ""
            text = {"done": "resting, because little changes now; any slider wakes it"}
            text = text.get(state, state)
            if self.live.error:
                text = f"failed: {self.live.error}"
            elif state == "done" and step.size >= self.finish:
                text = "finished, and kept below"
            elif self.finishing and self.began and step.done > self.began[1]:
                (start, before), share = self.began, step.done
                left = (time.monotonic() - start) * (1 - share) / (share - before)
                bar = f'<progress value="{share:.2f}" aria-label="finished"></progress> '
                doing = "finishing" if state == "painting" else state
                text = f"{doing}, {share:.0%}, about {left:.0f} s left"
            where = "loading the network"
            if self.image is not None:
                where = f"step {len(self.losses)}, {max(self.image.shape)} px"
            self.status.value = f"{bar}{html.escape(text)} · {where}"
            self.buttons[0].description = "Pause" if state == "painting" else "Paint"
            finish = "Stop finishing" if self.finishing else f"Finish at {self.finish} px"
            self.buttons[3].description = finish
