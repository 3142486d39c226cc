"""nst_studio.Live: one worker; it rests, ends and fails as it should, whatever is asked of it."""

import itertools
import random
import subprocess
import sys
import textwrap
import threading
import time
from contextvars import ContextVar
from functools import partial

import pytest
import torch
from jupyter_client.manager import KernelManager

import nst_helpers as nst
from nst_studio import Live


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "nst.Live"]


def fake_step(index):
    return nst.Step(index, 10**9, 8, 0.0, torch.full((1, 3, 8, 8), index / 1e6), (), torch.ones(0))


def quick(picture):
    """Endless steps that cost next to nothing; the first is the picture to go on from, plus one."""
    first = 0 if picture is None else round(picture.max().item() * 1e6)
    for index in itertools.count(first + 1):
        yield fake_step(index)


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.005)


@pytest.fixture
def live():
    live = Live(quick)
    yield live
    live.show = lambda live: None
    live.pause()
    until(lambda: Live._busy is None)
    assert len(workers()) <= 1


def test_starts_pauses_and_goes_on(live):
    assert (live.state, live.step) == ("paused", None)
    for _ in range(5):
        live.start()  # starting twice is starting once
    assert live.state == "painting"
    until(lambda: live.step and live.step.index > 5)
    live.pause()
    live.wait(10)
    assert live.state == "paused"
    index, before = live.step.index, time.process_time()
    time.sleep(0.5)
    assert live.step.index == index
    assert time.process_time() - before < 0.05  # a rest costs no computing
    live.start()
    until(lambda: live.step.index > index)
    assert len(workers()) == 1


def test_a_restart_is_afresh_or_from_a_picture_and_go_on_from_the_last(live):
    begun = []

    def begin(picture):
        begun.append(picture)
        return quick(picture)

    live.begin = begin
    live.start()
    until(lambda: live.step and live.step.index > 20)
    live.restart()
    live.go_on()  # must not take the wish for a fresh start back
    until(lambda: live.step and live.step.index < 20)
    until(lambda: live.step.index > 20)
    live.pause()
    live.wait(10)
    index = live.step.index
    live.go_on()
    until(lambda: live.step.index > index)
    assert begun[-1] is not None
    live.restart(fake_step(10**5).image, paint=False)
    live.wait(10)
    assert (live.state, live.step) == ("paused", None)
    live.start()
    until(lambda: live.step and live.step.index > 10**5)


def test_a_step_in_progress_is_dropped_when_others_are_asked_for(live):
    started, release, shown = threading.Event(), threading.Event(), []

    def slow(picture):
        started.set()
        assert release.wait(10)
        yield fake_step(1)

    live.begin, live.show = slow, lambda live: shown.append(live.step)
    live.start()
    started.wait(10)
    live.restart(paint=False)
    release.set()
    live.wait(10)
    assert set(shown) == {None}


def test_show_is_called_after_each_step_and_at_rest(live):
    seen = []
    live.show = lambda live: seen.append((live.step.index, live.state))
    live.start()
    until(lambda: len(seen) > 5)
    live.pause()
    live.wait(10)
    assert [index for index, _ in seen[:5]] == [1, 2, 3, 4, 5]
    assert seen[-1] == (live.step.index, "paused")


def test_the_worker_has_the_context_of_the_cell_that_made_it():
    cell, seen = ContextVar("cell"), []
    for name in ("first", "second"):
        cell.set(name)
        live = Live(quick, lambda live: seen.append(cell.get()))
        cell.set("a later one")
        live.start()
        until(lambda live=live: live.step)
        live.pause()
        live.wait(10)
    assert set(seen) == {"first", "second"}
    assert seen == sorted(seen)


def failing_after(count):
    def begin(picture):
        yield from itertools.islice(quick(picture), count)
        raise RuntimeError("out of paint")

    return begin


def test_an_error_is_shown_kept_and_raised(live):
    states, live.begin = [], failing_after(2)
    live.show = lambda live: states.append((live.state, str(live.error)))
    live.start()
    for _ in range(2):  # not only once
        with pytest.raises(RuntimeError, match="out of paint"):
            live.wait(10)
    assert states[-1] == ("failed", "out of paint")
    assert live.step.index == 2  # the picture is still there
    live.begin = quick
    live.start()
    until(lambda: live.step.index > 5)
    assert (live.state, live.error) == ("painting", None)
    assert len(workers()) == 1


@pytest.mark.parametrize("name", ["begin", "show"])
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_any_error_of_begin_or_show_is_kept(live, name, error):
    def broken(_):
        raise error

    working = getattr(live, name)
    setattr(live, name, broken)
    live.start()
    with pytest.raises(error):
        live.wait(10)
    assert live.state == "failed"
    setattr(live, name, working)
    live.start()
    until(lambda: live.state == "painting" and live.step and live.step.index > 3)


def test_show_cannot_wait_for_itself_but_may_pause(live):
    live.show = lambda live: live.wait()
    live.start()
    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        live.wait(10)
    index, live.show = live.step.index, lambda live: live.pause()
    live.start()
    live.wait(10)
    assert live.step.index == index + 1


def test_the_end_of_a_run_is_a_rest(live):
    live.begin = lambda picture: list(itertools.islice(quick(picture), 3))
    for last in (3, 6):  # goes on from there, and ends again
        live.start()
        live.wait(10)
        assert (live.state, live.step.index) == ("done", last)


def test_a_new_one_takes_the_worker_from_the_last(live):
    live.start()
    until(lambda: live.step)
    other = Live(quick)
    live.wait(10)
    assert live.state == "paused"
    index = live.step.index
    time.sleep(0.05)
    assert live.step.index == index
    live.start()  # and back
    until(lambda: live.step.index > index)
    other.start()
    until(lambda: other.step and other.step.index > 3)
    assert (live.state, len(workers())) == ("paused", 1)
    other.pause()


def test_many_hands_at_once():
    """Four threads press everything on three of them; there is never a second step at a time."""
    at_work, most = 0, 0

    def counted(picture):
        nonlocal at_work, most
        for step in quick(picture):
            at_work += 1
            most = max(most, at_work)
            time.sleep(0.001)
            at_work -= 1
            yield step

    lives, failures = [Live(counted) for _ in range(3)], []

    def hand(seed):
        choose = random.Random(seed)
        try:
            for _ in range(25):  # a hundred in all
                live = choose.choice(lives)
                operations = [live.start, live.start, live.pause, live.restart, live.go_on]
                choose.choice([*operations, partial(live.restart, paint=False)])()
                time.sleep(choose.random() * 0.01)
        except BaseException as error:
            failures.append(error)

    hands = [threading.Thread(target=hand, args=(seed,)) for seed in range(4)]
    for thread in hands:
        thread.start()
    for thread in hands:
        thread.join(30)
        assert not thread.is_alive(), "two of them wait for each other"
    assert not failures
    assert most == 1
    assert len(workers()) == 1
    for live in lives:
        live.restart()
        until(lambda live=live: live.step)
        live.pause()
        live.wait(10)
        assert (live.state, live.error) == ("paused", None)


PAINT = """
import time
import nst_helpers as nst, nst_studio
photo, painting = (nst.load_image(f"images/{x}.jpg", 64) for x in ("content/cat", "style/poppies"))
live = nst_studio.Live(lambda _: nst.stylize(photo, painting, sizes=64, steps=10**9, tolerance=0))
live.start()
while live.step is None and live.state == "painting":
    time.sleep(0.05)
"""


def test_the_end_of_the_program_ends_it(root):
    """In the middle of a step; torch aborts a program that ends so."""
    command = [sys.executable, "-c", PAINT + "print(live.state)"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("painting\n", "", 0)


def test_interrupting_and_closing_a_kernel(root):
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=root)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def ask(code):
        printed = []

        def listen(message):
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = client.execute_interactive(
            textwrap.dedent(code), timeout=60, output_hook=listen, allow_stdin=False
        )
        return reply["content"]["status"], "".join(printed).strip()

    try:
        assert ask(PAINT)[0] == "ok"
        manager.interrupt_kernel()
        status, text = ask("seen = live.step.index\ntime.sleep(1)\nprint(live.step.index > seen)")
        assert (status, text) == ("ok", "True")
        manager.shutdown_kernel(now=False)  # as JupyterLab does
        assert not manager.is_alive()
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)
