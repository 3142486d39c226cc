"""The studio: recipes, and a worker that paints in the background while sliders stay alive."""

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

from nst_helpers import Step, Weights, best_device, load_image, load_vgg19, match_colors, stylize

WORDS = ("title", "why", "trials")  # entries of a recipe that say something and change nothing


def follow(recipe: Mapping, images: str | Path, **changes) -> Iterator[Step]:
    """Return the steps of `stylize` for a recipe of images/recipes.json; `images` is that folder.

    "content" and "style" name files in its folders, .jpg if they have no ending; "keep_colors"
    gives the painting the photograph's colours first; "weights" and "layers" go to `Weights`, and
    what they leave out keeps its default; all else but WORDS goes to `stylize`; "pooling" is that
    of the network. `changes` replace entries.
    """
    recipe = {key: x for key, x in {**recipe, **changes}.items() if key not in WORDS}
    if pooling := recipe.pop("pooling", None):
        recipe["vgg"] = load_vgg19(pooling=pooling).to(best_device())
    files = [Path(images, kind, recipe.pop(kind)) for kind in ("content", "style")]
    content, style = (load_image(x if x.suffix else x.with_suffix(".jpg")) for x in files)
    style = match_colors(style, content) if recipe.pop("keep_colors", False) else style
    weights = Weights(**recipe.pop("weights", {}))
    weights.layers |= recipe.pop("layers", {})
    return stylize(content, style, weights=weights, **recipe)


class Live:
    """Makes steps in a background thread, so that the cell ends and its sliders stay alive.

    `begin(picture)` returns the steps to make, usually those of `stylize`; `picture` is the last
    one painted, to go on from, or None for a fresh start. `show(live)` is called after every step
    and before every rest. It reads `live.step`, the last one, `live.state` ("painting", "paused"
    or "failed") and `live.error`. A kernel has one worker thread. A Live that is made, or given
    work, takes the worker from the one before, which then rests.
    """

    _news = threading.Condition()  # guards what is wanted; notified when that or _busy changes
    _turn = threading.RLock()  # held during a step: there is one at a time, whoever makes it
    _thread: threading.Thread | None = None
    _current: "Live | None" = None  # whose steps the worker makes
    _busy: "Live | None" = None  # whose step it is making right now

    def __init__(self, begin: Callable, show: Callable = lambda live: None):
        self.begin, self.show = begin, show
        self.step: Step | None = None
        self.error: BaseException | None = None
        self._going, self._wish, self._steps = False, "", None
        self._context = copy_context()  # so what `show` prints goes to the cell that made this Live
        self._ask()

    @property
    def state(self) -> str:
        return "failed" if self.error else "painting" if self._going else "paused"

    def start(self) -> None:
        """Paint on from the last picture until `pause`; if it is painting already, do nothing."""
        self._ask(going=True)

    def pause(self) -> None:
        """Rest after the step in progress; a rest costs no computing."""
        with Live._news:
            self._going = False

    def restart(self, fresh: bool = False) -> None:
        """Call `begin` again, with None if `fresh`; when paused, make one step, to be shown."""
        self._ask(wish="fresh" if fresh else "again")

    def advance(self, count: int) -> None:
        """Pause, and make `count` steps in the calling thread, where errors are raised."""
        self._ask()
        self.pause()
        for _ in range(count):
            if not self._make_step():
                break

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
        return Live._current is self and (self._going or self._wish != "")

    def _ask(self, going: bool = False, wish: str = "") -> None:
        with Live._news:
            if Live._current is not None and Live._current is not self:
                Live._current._going, Live._current._wish = False, ""
            Live._current, self.error = self, None
            self._going = self._going or going
            self._wish = "fresh" if self._wish == "fresh" else wish or self._wish
            if Live._thread is None and self._has_work():
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
                time.sleep(0.002)  # lets the thread run that hears the sliders
            if self.step is not None:
                with Live._turn:
                    self.show(self)
        except BaseException as error:  # exit() among them: a silent end would hide it
            self.error, self._going = error, False
            with suppress(BaseException), Live._turn:  # `show` itself may be what fails
                self.show(self)

    def _make_step(self) -> bool:
        with Live._turn:
            with Live._news:
                wish, self._wish, self.error = self._wish, "", None  # what changes now counts again
            steps, self._steps = self._steps, None  # an interrupted generator is of no more use
            if wish or steps is None:
                keep = self.step is not None and wish != "fresh"
                steps = iter(self.begin(self.step.image if keep else None))
            step = next(steps, None)
            if step is None:  # the end of this run
                self._going = False
                return False
            self.step, self._steps = step, steps
            self.show(self)
            return True
