"""nst.Live: one worker, which rests, ends and fails as it should, whatever is asked of it."""

import itertools
import random
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from jupyter_client.manager import KernelManager

import nst_helpers as nst


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "nst.Live"]


def fake_step(index):
    losses = {"content": 1.0, "style": 1.0, "tv": 0.0, "total": 2.0}
    return nst.Step(index, 10**9, 8, 0.0, losses, torch.full((1, 3, 8, 8), index / 1e6))


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
    assert not workers()
    live = nst.Live(quick)
    yield live
    live.close()
    until(lambda: not workers())


def test_starts_pauses_and_goes_on(live):
    assert live.state == "paused"
    assert live.step is None
    live.start()
    assert live.state == "painting"
    until(lambda: live.step and live.step.index > 5)
    live.pause()
    live.wait()
    assert live.state == "paused"
    index = live.step.index
    time.sleep(0.1)
    assert live.step.index == index
    live.start()
    until(lambda: live.step.index > index)


def test_a_rest_costs_no_computing(live):
    live.start()
    until(lambda: live.step)
    live.pause()
    live.wait()
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05
    assert len(workers()) == 1


def test_starting_twice_is_starting_once(live):
    for _ in range(5):
        live.start()
    until(lambda: live.step and live.step.index > 5)
    assert len(workers()) == 1


def test_restart_goes_on_from_the_picture_or_afresh(live):
    begun = []
    live.begin = lambda picture: begun.append(picture) or quick(picture)
    live.advance(3)
    assert live.step.index == 3
    live.restart()
    live.wait()
    assert live.step.index == 4  # one step, to be shown
    assert live.state == "paused"
    live.restart(fresh=True)
    live.restart()  # must not take the wish for a fresh start back
    live.wait()
    assert live.step.index <= 2
    assert [picture is None for picture in begun[:2]] == [True, False]
    assert begun[2] is None


def test_restart_while_painting_paints_on(live):
    live.start()
    until(lambda: live.step and live.step.index > 50)
    live.restart(fresh=True)
    until(lambda: live.step.index < 50)
    until(lambda: live.step.index > 60)
    assert live.state == "painting"


def test_show_is_called_after_each_step_and_at_rest(live):
    seen = []
    live.show = lambda live: seen.append((live.step.index, live.state))
    live.start()
    until(lambda: len(seen) > 5)
    live.pause()
    live.wait()
    assert [index for index, _ in seen[:5]] == [1, 2, 3, 4, 5]
    assert seen[-1] == (live.step.index, "paused")


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
    assert live.state == "painting"
    assert live.error is None
    assert len(workers()) == 1


def test_an_error_of_begin_or_show_is_an_error_like_any_other(live):
    def broken(*_):
        raise ValueError("too small")

    for name in ("begin", "show"):
        working = getattr(live, name)
        setattr(live, name, broken)
        live.restart()
        with pytest.raises(ValueError, match="too small"):
            live.wait(10)
        setattr(live, name, working)
        live.start()
        until(lambda: live.state == "painting" and live.step)
        live.pause()
        live.wait(10)


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_a_program_that_wants_to_end_is_an_error_too(live, ending):
    def leave(live):
        raise ending

    live.show = leave
    live.start()
    with pytest.raises(ending):
        live.wait(10)
    assert live.state == "failed"
    live.show = lambda live: None
    index = live.step.index
    live.start()
    until(lambda: live.step.index > index)


def test_show_cannot_wait_for_itself(live):
    live.show = lambda live: live.wait()
    live.start()
    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        live.wait(10)


def test_any_list_of_steps_will_do(live):
    live.begin = lambda picture: [fake_step(1), fake_step(2)]
    live.start()
    live.wait(10)
    assert live.step.index == 2


def test_a_run_that_ends_is_a_rest(live):
    live.begin = lambda picture: itertools.islice(quick(picture), 3)
    live.start()
    live.wait(10)
    assert (live.state, live.step.index) == ("paused", 3)
    live.advance(7)  # goes on from there, and ends again
    assert live.step.index == 6


def test_advance_works_without_a_worker_and_stops_one(live):
    live.advance(4)
    assert (live.step.index, workers()) == (4, [])
    live.start()
    until(lambda: live.step.index > 10)
    live.advance(1)
    assert live.state == "paused"
    live.wait(10)
    index = live.step.index
    time.sleep(0.1)
    assert live.step.index == index


def test_advance_raises_and_an_interruption_keeps_the_picture(live):
    live.begin = failing_after(2)
    with pytest.raises(RuntimeError, match="out of paint"):
        live.advance(5)
    assert live.step.index == 2

    def interrupt(live):
        if live.step.index == 5:
            raise KeyboardInterrupt

    live.begin, live.show = quick, interrupt
    with pytest.raises(KeyboardInterrupt):
        live.advance(10)
    assert live.step.index == 5
    live.show = lambda live: None
    live.advance(1)
    assert live.step.index == 6


def test_a_new_one_ends_the_worker_of_the_last(live):
    live.start()
    other = nst.Live(quick)
    assert workers() == []
    assert live.state == "paused"
    live.start()  # and back
    other.start()
    until(lambda: other.step and other.step.index > 3)
    assert len(workers()) == 1
    assert live.state == "paused"
    other.close()


def test_closed_may_be_started_again(live):
    for _ in range(3):
        live.start()
        live.close()
        assert workers() == []
    live.close()
    live.start()
    index = live.step.index if live.step else 0
    until(lambda: live.step and live.step.index > index)


def test_show_may_pause_and_close(live):
    live.show = lambda live: live.close() if live.step.index == 5 else None
    live.start()
    until(lambda: not workers())
    assert live.step.index == 5
    live.show = lambda live: live.pause()
    live.start()
    live.wait(10)
    assert live.step.index == 6


def test_many_hands_at_once():
    """Four threads press everything on three of them; there is never a second worker at work."""
    at_work, most, lock = 0, 0, threading.Lock()

    def counted(picture):
        nonlocal at_work, most
        for step in quick(picture):
            with lock:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.001)
            with lock:
                at_work -= 1
            yield step

    lives, failures = [nst.Live(counted) for _ in range(3)], []

    def hand(seed):
        choose = random.Random(seed)
        try:
            for _ in range(50):
                live = choose.choice(lives)
                choose.choice(
                    (live.start, live.start, live.pause, live.restart, live.close, live.close)
                )()
                time.sleep(choose.random() * 0.005)
        except Exception as error:
            failures.append(error)

    hands = [threading.Thread(target=hand, args=(seed,)) for seed in range(4)]
    for thread in hands:
        thread.start()
    for thread in hands:
        thread.join(60)
        assert not thread.is_alive(), "two of them wait for each other"
    assert not failures
    assert most == 1
    assert len(workers()) <= 1
    for live in lives:
        live.close()
        assert live.error is None
    assert workers() == []


PAINT = """
import nst_helpers as nst
photo, painting = nst.load_image("images/content/temple.jpg", 96), nst.load_image(
    "images/style/starry_night.jpg", 96)
live = nst.Live(lambda picture: nst.stylize(photo, painting, sizes=96, steps=10**9, tolerance=0))
live.start()
"""


def test_the_end_of_the_program_ends_it(root):
    code = PAINT + "import time\nwhile live.step is None: time.sleep(0.05)\nprint('painting')"
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "painting\n", run.stderr
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert time.monotonic() - start < 60


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
            textwrap.dedent(code), timeout=120, output_hook=listen, allow_stdin=False
        )
        return reply["content"]["status"], "".join(printed).strip()

    try:
        assert ask(PAINT)[0] == "ok"
        ask("import time\nwhile live.step is None: time.sleep(0.05)")
        first = int(ask("print(live.step.index)")[1])
        manager.interrupt_kernel()
        time.sleep(2)
        status, text = ask("print(live.step.index)")
        assert status == "ok"
        assert int(text) > first
        start = time.monotonic()
        manager.shutdown_kernel(now=False)  # as JupyterLab does
        assert time.monotonic() - start < 10
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)
