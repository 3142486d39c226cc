"""The loop: L-BFGS against torch's own, and everything that can go wrong while pixels change."""

import gc
import math
from itertools import pairwise

import pytest
import torch

import nst_helpers as nst


def test_lbfgs_moves_as_torch_does():
    """On a badly conditioned quadratic, at 25 steps: its memory of 10 pairs is full and forgets."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))[0]
    curvature = basis * torch.logspace(-2, 2, 30, dtype=torch.float64) @ basis.T
    goal = torch.randn(30, dtype=torch.float64)
    x = torch.zeros_like(goal, requires_grad=True)
    peer = torch.optim.LBFGS([x], lr=0.5, max_iter=1, history_size=10)

    def closure():
        peer.zero_grad()
        loss = (x - goal) @ curvature @ (x - goal) / 2
        loss.backward()
        return loss

    for step in range(25):
        peer.step(closure)
        state = peer.state[x]
        memory = [state.get(key) or [] for key in ("old_stps", "old_dirs", "ro")]
        pairs = list(zip(*memory, strict=True))
        move = nst.lbfgs_move(state["prev_flat_grad"], pairs)
        assert len(pairs) == min(step, 10)
        if step:  # torch shortens the first one only by its step length
            torch.testing.assert_close(move, state["d"], rtol=1e-9, atol=0)
        else:
            assert torch.equal(move, -state["prev_flat_grad"])
    nothing = torch.zeros_like(goal), torch.zeros_like(goal), 0.0  # a pair that does not count
    ignored = nst.lbfgs_move(state["prev_flat_grad"], [pairs[0], nothing, *pairs[1:]])
    torch.testing.assert_close(ignored, move)


GOAL = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
GREY = torch.full_like(GOAL, 0.5)
STEEP = torch.logspace(0, 3, GOAL.numel()).view_as(GOAL)  # some pixels count 1000 times more


def distance(picture):
    return {"distance": (STEEP * (picture - GOAL).square()).mean()}


def two_goals(picture):
    return {
        "here": (STEEP * (picture - GOAL).square()).mean(),
        "there": (STEEP.flip(3) * (picture - GOAL.flip(3)).square()).mean(),
    }


class Flawed:
    """The loss `distance`, which goes wrong at chosen calls (the first is 1)."""

    def __init__(self, bad_calls, kind):
        self.bad_calls, self.kind, self.calls = bad_calls, kind, 0

    def __call__(self, picture):
        self.calls += 1
        losses = distance(picture)
        if self.calls in self.bad_calls:
            if self.kind == "gradient":
                picture.register_hook(lambda gradient: gradient * math.nan)
            else:
                losses["distance"] = losses["distance"] * float(self.kind)
        return losses


def test_it_reaches_the_lowest_loss():
    steps = list(nst.optimize(GREY, distance, steps=150, tolerance=0))
    assert steps[-1].losses["total"] < 1e-4 * steps[0].losses["total"]
    assert (steps[-1].image - GOAL).abs().max() < 0.02
    assert [step.index for step in steps] == list(range(1, 151))
    assert [step.done for step in steps] == [index / 150 for index in range(1, 151)]
    assert {(step.total, step.size) for step in steps} == {(150, 16)}


def test_losses_belong_to_the_picture_and_the_first_one_is_the_start():
    steps = list(nst.optimize(GREY, two_goals, lambda: {"here": 3.0, "there": 0.5}, steps=12))
    assert torch.equal(steps[0].image, GREY)
    for step in steps:
        expected = {name: loss.item() for name, loss in two_goals(step.image).items()}
        expected["total"] = 3 * expected["here"] + expected["there"] / 2
        assert step.losses == pytest.approx(expected, rel=1e-5)


def test_pixels_stay_between_black_and_white():
    """With a goal beyond them; the loss is then lowest at the nearest colour."""
    goal = 3 * GOAL - 1

    def losses_of(picture):
        return {"distance": (picture - goal).square().mean()}

    for step in nst.optimize(GREY, losses_of, steps=80, tolerance=0):
        assert 0 <= step.image.min() <= step.image.max() <= 1
    assert (step.image - goal.clamp(0, 1)).abs().max() < 0.01


def test_no_move_is_longer_than_allowed():
    steps = list(nst.optimize(GREY, distance, steps=40, tolerance=0))
    moves = [(b.image - a.image).abs().mean().item() for a, b in pairwise(steps)]
    assert moves[0] == pytest.approx(nst.FIRST_MOVE, rel=1e-3)
    assert max(moves) <= 1.001 * nst.LONGEST_MOVE


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter(factor):
    one, other = (
        list(nst.optimize(GREY, distance, lambda f=f: {"distance": f}, steps=30, tolerance=0))
        for f in (1.0, factor)
    )
    assert (one[-1].image - other[-1].image).abs().max() < 1e-3


def test_it_ends_when_nothing_visible_changes():
    steps = list(nst.optimize(GREY, distance, steps=1000, tolerance=1e-3))
    assert len(steps) % 10 == 0
    assert 10 < len(steps) < 1000
    looks = [steps[0], *steps[9::10]]
    moved = [(b.image - a.image).abs().mean() for a, b in pairwise(looks)]
    assert moved[-1] < 1e-3 <= min(moved[:-1])
    assert len(list(nst.optimize(GOAL, distance, steps=35, tolerance=0))) == 35


def test_a_loss_without_a_slope_changes_nothing():
    steps = list(nst.optimize(GOAL, distance, lambda: {"distance": 0.0}, steps=100))
    assert len(steps) == 10
    assert torch.equal(steps[-1].image, GOAL)
    assert steps[-1].losses["total"] == 0


@pytest.mark.parametrize("kind", ["1e6", "inf", "nan", "gradient"])
def test_an_explosion_goes_back_to_the_best_picture_and_on(kind):
    steps = list(nst.optimize(GREY, Flawed({6, 7}, kind), steps=60, tolerance=0))
    best = min(steps[:5], key=lambda step: step.losses["total"])
    for step in steps[5:7]:
        assert torch.equal(step.image, best.image)
        assert step.losses == best.losses
    assert (steps[7].image - best.image).abs().mean() < 0.2 * nst.LONGEST_MOVE  # gently
    assert steps[-1].losses["total"] < 0.1 * best.losses["total"]


def test_a_restart_is_not_convergence():
    """From step 2 to 10 the best picture is the first one, so nothing moves: it goes on."""
    steps = list(nst.optimize(GREY, Flawed(range(2, 11), "nan"), steps=80, tolerance=1e-6))
    assert torch.equal(steps[9].image, steps[0].image)
    assert steps[-1].losses["total"] < 0.5 * steps[0].losses["total"]


@pytest.mark.parametrize("kind", ["inf", "nan", "gradient"])
def test_a_loss_that_always_fails_is_an_error_and_the_picture_stays(kind):
    steps = []
    with pytest.raises(RuntimeError, match=r"not finite or exploded, .* lower the weights"):
        steps.extend(iter(nst.optimize(GREY, Flawed(range(1, 99), kind), steps=50)))
    assert steps == []
    with pytest.raises(RuntimeError, match=r"1\d times without progress; .* step has a picture"):
        steps.extend(iter(nst.optimize(GREY, Flawed(range(5, 99), kind), steps=50)))
    assert steps[-1].losses == min((step.losses for step in steps), key=lambda x: x["total"])
    assert distance(steps[-1].image)["distance"].item() == pytest.approx(steps[-1].losses["total"])


def test_a_failure_at_the_last_step_still_gives_a_picture():
    steps = list(nst.optimize(GREY, Flawed({8}, "nan"), steps=8))
    assert len(steps) == 8
    assert steps[-1].losses["total"] == min(step.losses["total"] for step in steps)


def test_factors_act_on_the_next_step():
    factors = {"here": 1.0, "there": 0.0}
    run = nst.optimize(GREY, two_goals, lambda: factors, steps=120, tolerance=0)
    before = [next(run) for _ in range(60)][-1]
    assert (before.image - GOAL).abs().mean() < 0.05
    factors.update(here=0.0, there=1e6)  # which is no explosion
    after = list(run)
    assert after[0].losses["total"] == pytest.approx(1e6 * after[0].losses["there"])
    assert (after[-1].image - GOAL.flip(3)).abs().mean() < 0.05


def test_a_loss_that_is_left_out_is_only_reported():
    steps = list(nst.optimize(GREY, two_goals, lambda: {"here": 2.0}, steps=20))
    alone = list(nst.optimize(GREY, distance, lambda: {"distance": 2.0}, steps=20))
    assert torch.equal(steps[-1].image, alone[-1].image)
    assert steps[-1].losses["there"] == pytest.approx(two_goals(steps[-1].image)["there"].item())


def test_stale_curvature_is_forgotten():
    """After a change the move follows the new slope alone, as at the very first step."""
    factors = {"here": 1.0, "there": 0.0}
    run = nst.optimize(GREY, two_goals, lambda: factors, steps=99, tolerance=0)
    for _ in range(6):
        next(run)
    factors.update(here=0.0, there=1.0)
    one, other = next(run).image, next(run).image
    slope = STEEP.flip(3) * (one - GOAL.flip(3))
    inside = (other > 0) & (other < 1) & (one > 0) & (one < 1)  # where nothing was clamped
    moved, slope = (other - one)[inside], slope[inside]
    assert torch.cosine_similarity(moved, -slope, dim=0) > 0.999


def test_moving_a_slider_does_not_shake_the_picture():
    """Near the end, each change of a weight is followed by a move no longer than the last one."""
    factors = {"here": 1.0, "there": 1.0}
    run = nst.optimize(GREY, two_goals, lambda: factors, steps=200, tolerance=0)
    images = [next(run).image for _ in range(100)]
    before = (images[-1] - images[-2]).abs().mean()
    factors["there"] *= 1.01
    images = [images[-1], next(run).image, next(run).image]
    after = max((b - a).abs().mean() for a, b in pairwise(images))
    assert after < 2 * max(before, nst.FIRST_MOVE / 100)


def test_nothing_grows_while_it_runs():
    """Tensors alive after 90 steps and after 290, with a change of the factors now and then."""
    factors, alive = {"here": 1.0, "there": 1.0}, {}
    for step in nst.optimize(GREY, two_goals, lambda: factors, steps=300, tolerance=0):
        factors["there"] += step.index % 25 == 0
        if step.index in (90, 290):
            gc.collect()
            alive[step.index] = sum(type(x) is torch.Tensor for x in gc.get_objects())
    assert alive[290] <= alive[90]
