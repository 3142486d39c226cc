"""The loop: it paints, it obeys, and nothing that goes wrong loses the picture."""

import base64
import math
import re
import subprocess
import sys
import warnings
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from torch.nn.functional import avg_pool2d, interpolate

import nst_helpers as nst


@pytest.fixture(scope="module")
def avg_vgg():
    return nst.load_vgg19(pooling="avg")


@pytest.fixture
def paint(temple, starry_night, avg_vgg):
    def run(content=temple, style=starry_night, vgg=avg_vgg, sizes=64, steps=12, **options):
        return nst.stylize(content, style, vgg=vgg, sizes=sizes, steps=steps, **options)

    return run


def recomputed(vgg, step, content, style, weights, boost=1.0):
    """The losses of a step once more, from its picture alone and the paper's sums."""
    x, p, a = (
        vgg(picture, nst.STYLE_LAYERS + nst.CONTENT_LAYERS)
        for picture in (step.image, nst.resize(content, step.size), nst.resize(style, step.size))
    )
    F, P = x["relu4_2"], p["relu4_2"]
    losses = {"content": (0.5 * (F - P).square().sum() / F.numel()).item(), "style": 0.0}
    for name in nst.STYLE_LAYERS:
        F, S = x[name][0].flatten(1).double(), a[name][0].flatten(1).double()
        difference = F @ F.T / F.shape[1] - S @ S.T / S.shape[1]
        E = difference.square().sum().item() / (4 * F.shape[0] ** 2)
        losses["style"] += weights.layers[name] * E
    total = boost * weights.content * losses["content"] + weights.style * losses["style"]
    return {**losses, "total": total}


def test_steps_count_and_pictures_are_pictures(paint):
    steps = list(paint(sizes=(48, 64), steps=(3, 4)))
    assert [step.index for step in steps] == list(range(1, 8))
    assert {step.total for step in steps} == {7}
    assert [step.size for step in steps] == [48] * 3 + [64] * 4
    for step in steps:
        assert max(step.image.shape[-2:]) == step.size
        assert 0 <= step.image.min() <= step.image.max() <= 1
        assert not step.image.requires_grad
        assert step.note == ""
        assert 0 < step.done <= 1
        assert set(step.losses) == {"content", "style", "tv", "total"}


def test_done_is_the_share_of_the_pixels_computed(paint):
    done = [step.done for step in paint(sizes=(32, 64), steps=(4, 3))]
    assert done == pytest.approx([1 / 16, 2 / 16, 3 / 16, 4 / 16, 8 / 16, 12 / 16, 1])


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_loss_falls(paint, optimizer):
    totals = [step.losses["total"] for step in paint(optimizer=optimizer, steps=40)]
    assert totals[-1] < 0.1 * totals[0]


def test_losses_belong_to_the_picture(paint, avg_vgg, temple, starry_night):
    weights = nst.Weights(content=2.0, style=500.0)
    steps = list(paint(weights=weights, sizes=(48, 64), steps=(4, 6), coarse_content=3.0))
    for step, boost in ((steps[3], 3.0), (steps[-1], 1.0)):
        expected = recomputed(avg_vgg, step, temple, starry_night, weights, boost)
        for name, value in expected.items():
            assert step.losses[name] == pytest.approx(value, rel=1e-3), name


def test_starts(paint, temple, starry_night):
    def first(init):
        return next(paint(init=init)).image

    content, style = nst.resize(temple, 64), nst.resize(starry_night, 64)
    assert torch.allclose(first("content"), content, atol=1e-5)
    assert first("style").shape == content.shape  # stretched to the shape of the content
    assert torch.allclose(first("matched"), nst.match_colors(content, style), atol=1e-5)
    assert torch.allclose(first(content.flip(3)), content.flip(3), atol=1e-5)
    assert torch.equal(first("noise"), first("noise"))
    assert 0.03 < first("noise").std() < 0.3


def test_the_seed_decides_and_the_global_one_is_left_alone(paint):
    state = torch.get_rng_state()
    one, other = (next(paint(init="noise", seed=seed)).image for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_same_picture(paint):
    runs = [list(paint(init="noise", seed=3, steps=6))[-1].image for _ in range(2)]
    assert torch.equal(*runs)


def test_weights_act_on_the_next_step(paint):
    weights = nst.Weights()
    run = paint(weights=weights, steps=30)
    before = [next(run) for _ in range(10)][-1]
    weights.style = 0.0  # from now on only the content counts
    after = list(run)
    assert after[0].losses["total"] == pytest.approx(after[0].losses["content"])
    assert after[-1].losses["content"] < 0.5 * before.losses["content"]
    assert after[-1].losses["style"] > before.losses["style"]


def test_layer_weights_act_too(paint):
    weights = nst.Weights(content=0.0)
    run = paint(weights=weights, steps=4)
    first, _ = next(run), next(run)
    weights.layers = {"relu1_1": 1.0, "relu3_2": 0.0, "conv2_2": 1e-4}  # one of them new
    third = next(run)
    assert third.losses["style"] != pytest.approx(first.losses["style"], rel=0.5)
    weights.layers["relu1_1"] = -1.0  # past the check at assignment
    with pytest.raises(ValueError, match=r"weight layers.* must be a number from 0"):
        next(run)


@pytest.mark.parametrize("layers", [nst.STYLE_LAYERS[:1], nst.STYLE_LAYERS])
def test_faint_noise_does_not_make_lbfgs_leap(paint, avg_vgg, starry_night, layers):
    """The paper's network and ratios: there the first steps used to explode."""
    vgg = nst.normalize_activations(avg_vgg, [starry_night])
    weights = nst.Weights(content=1e-3, style=1.0, layers=dict.fromkeys(layers, 1 / len(layers)))
    steps = list(paint(vgg=vgg, weights=weights, init="noise", steps=30, coarse_content=1.0))
    assert not any(step.note for step in steps)
    moves = [(after.image - before.image).abs().mean() for before, after in pairwise(steps)]
    assert max(moves) <= 1.01 * nst.LONGEST_MOVE
    assert steps[-1].losses["total"] < 0.5 * steps[0].losses["total"]


def test_content_alone_returns_to_the_photograph(paint, temple):
    last = list(paint(init="noise", weights=nst.Weights(style=0.0), steps=60))[-1]
    start = next(paint(init="noise", weights=nst.Weights(style=0.0)))
    assert last.losses["content"] < 0.05 * start.losses["content"]


def test_total_variation_smooths(paint):
    rough, smooth = (list(paint(weights=nst.Weights(tv=tv)))[-1].losses["tv"] for tv in (0, 1e9))
    assert smooth < 0.5 * rough


@pytest.mark.parametrize("field", ["content", "style", "tv"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "5", None, [1.0], 1j])
def test_weights_are_checked_where_they_are_set(field, value):
    with pytest.raises(ValueError, match=f"weight {field} must be a number from 0 to 1e"):
        nst.Weights(**{field: value})
    weights = nst.Weights()
    with pytest.raises(ValueError, match=f"weight {field} must be a number from 0 to 1e"):
        setattr(weights, field, value)
    with pytest.raises(ValueError, match=r"weight layers\['relu1_1'\] must be a number from 0"):
        weights.layers = {"relu1_1": value}
    assert weights == nst.Weights()  # what was refused is not half stored


def test_layers_of_weights_are_checked():
    weights = nst.Weights()
    for wrong in ({"relu9_9": 1.0}, {}, {None: 1.0}):
        with pytest.raises(ValueError, match=r"(unknown or|layers has) no .*conv1_1, relu1_1"):
            weights.layers = wrong
    for wrong in (["relu1_1"], "relu1_1", None, 5.0):
        with pytest.raises(ValueError, match="layers must be a dict"):
            weights.layers = wrong
    with pytest.raises(AttributeError, match="no weight 'stlye'; there are content, style, tv"):
        weights.stlye = 500.0


def test_numbers_of_any_kind_are_weights():
    for one in (1, True, np.float32(1), np.int64(1), Fraction(1)):
        assert nst.Weights(content=one).content == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": torch.zeros(3, 64, 64)}, r"content must be a tensor \(1, 3, H, W\)"),
        ({"style": "starry_night.jpg"}, r"style must be a tensor .* got starry_night.jpg"),
        ({"style": torch.full((1, 3, 32, 32), torch.nan)}, "style must hold finite"),
        ({"init": "photo"}, "init must be a picture or one of matched, content, style, noise"),
        ({"init": torch.zeros(1, 1, 8, 8)}, "init must be a tensor"),
        ({"init": None}, "init must be a picture or one of"),
        ({"init": np.zeros((8, 8, 3))}, r"init must be a picture.* not ndarray \(8, 8, 3\)"),
        ({"sizes": ()}, "must go in pairs, at least one"),
        ({"sizes": (64, 96), "steps": (5,)}, "must go in pairs"),
        ({"steps": 0}, "each of steps must be a whole number, 1 or more"),
        ({"steps": 2.5}, "each of steps must be a whole number"),
        ({"steps": "10"}, "each of steps must be a whole number"),
        ({"sizes": -64}, "each of sizes.* must be a whole number, 1 or more"),
        ({"sizes": (64, 64.5)}, "each of sizes.* must be a whole number"),
        ({"sizes": "64"}, "each of sizes.* must be a whole number"),
        ({"sizes": None}, "each of sizes.* must be a whole number"),
        (
            {"sizes": 20},
            r"content is too.* side has 13 px.*relu5_1.*needs 16 px; .* of 24 px would",
        ),
        ({"style": torch.rand(1, 3, 3, 64)}, "style is too small: its short side has 3 px"),
        ({"content": torch.zeros(1, 3, 1, 1), "sizes": 8}, "too small"),
        ({"content": torch.rand(1, 3, 1, 5000)}, "of 80,000 px would do, or a crop less narrow"),
        ({"content_layers": ["relu4_9"]}, "unknown or no layer.*relu4_9.*relu1_1"),
        ({"content_layers": []}, "unknown or no layer"),
        ({"content_layers": None}, "unknown or no layer"),
        ({"content_layers": "relu4_2"}, r'a list or a tuple of names: \["relu4_2"\]'),
        ({"optimizer": "sgd"}, "lbfgs"),
        ({"optimizer": None}, "lbfgs"),
        ({"lr": 0.0}, "lr must be a number"),
        ({"lr": math.nan}, "lr must be a number"),
        ({"lr": "1"}, "lr must be a number"),
        ({"lr": 1e300}, "lr must be a number"),
        ({"coarse_content": -1.0}, "coarse_content must be a number from 0 to 1e"),
        ({"coarse_content": math.inf}, "coarse_content must be a number"),
        ({"tolerance": -1.0}, "tolerance .* must be a number from 0 to 1"),
        ({"tolerance": math.nan}, "tolerance .* must be"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"weights": {"style": 1.0}}, r"weights must be made by nst.Weights\(...\), not dict"),
        ({"vgg": "oxford"}, "vgg must be made by nst.load_vgg19, not oxford"),
        ({"vgg": torch.nn.Identity()}, "vgg must be made by nst.load_vgg19, not Identity"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(paint, options, message):
    with pytest.raises(ValueError, match=message):
        paint(**options)  # not even the first step is asked for


def test_arguments_of_unusual_types_that_make_sense(paint, temple):
    """numpy's numbers, a fraction, True; a start that somebody else wants gradients of."""
    options = {"sizes": np.int64(48), "steps": np.int64(2), "seed": np.int64(3), "lr": True}
    assert len(list(paint(**options, init="noise"))) == 2
    assert len(list(paint(steps=(2,), sizes=[48], lr=Fraction(1, 2), optimizer="adam"))) == 2
    assert len(list(paint(init=temple.clone().requires_grad_(), steps=2))) == 2
    with torch.inference_mode():
        made_there = temple * 1.0
        with pytest.raises(ValueError, match=r"leave torch\.inference_mode"):
            paint()
    assert len(list(paint(content=made_there, init=made_there, steps=2))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, "a recipe has no 'size'; it may have .*sizes"),
        ({"content": None}, "recipe must name a file as content, not NoneType"),
        ({"style": ["a", "b"]}, "recipe must name a file as style, not list"),
        ({"content": "no-such"}, r"no-such\.jpg does not exist"),
        ({"weights": {"styel": 1}}, "weights has no 'styel'; it may have content, style, tv"),
        ({"weights": None}, "weights must be a dict, not NoneType"),
        ({"weights": {"style": "much"}}, "weight style must be a number"),
        ({"layers": {"relu1_1": "2"}}, "factor of relu1_1 must be a number"),
        ({"layers": {"relu1_1": -2}}, "factor of relu1_1 must be a number from 0"),
        ({"layers": {"conv1_1": 2}}, "layers has no 'conv1_1'; it may have relu1_1"),
        ({"layers": 3}, "layers must be a dict, not int"),
    ],
)
def test_recipes_with_mistakes(root, avg_vgg, changes, message):
    recipe = {"content": "temple", "style": "poppies", "title": "x", "sizes": 48, "vgg": avg_vgg}
    nst.follow(recipe, root / "images")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        nst.follow(recipe, root / "images", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        nst.follow(recipe | changes, root / "images")
    with pytest.raises(ValueError, match="a recipe must be a dict, not list"):
        nst.follow([recipe], root / "images")


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_sizes_beyond_the_memory_are_refused_at_the_call(paint, optimizer):
    message = r"content of 100,000 × 66,\d+ pixels needs about [\d,.]+ GB of memory, and [\d.]+ GB"
    with pytest.raises(ValueError, match=message):
        paint(sizes=(64, 100_000), optimizer=optimizer)


def test_the_advised_size_is_accepted(paint, monkeypatch):
    monkeypatch.setattr(nst, "_free_memory", lambda device: 20e6)  # a very small machine
    with pytest.raises(ValueError, match="would fit") as raised:
        paint(sizes=(64, 512))
    size = int(re.search(r"long side of (\d+) px would fit", str(raised.value))[1])
    assert 64 < size < 512
    paint(sizes=(64, size))
    with pytest.raises(ValueError, match="would fit"):
        paint(sizes=(64, size + 4))
    paint(sizes=(64, size + 4), optimizer="adam")  # which needs less
    pair = {"content": torch.rand(1, 3, 20, 80), "style": torch.rand(1, 3, 80, 80)}
    with pytest.raises(ValueError, match=r"style of 512 × 512 .* would fit") as raised:
        paint(**pair, sizes=(64, 512))  # here the painting is what is large
    paint(**pair, sizes=int(re.search(r"long side of (\d+) px would fit", str(raised.value))[1]))


def test_what_an_earlier_painting_took_counts_as_free(paint, monkeypatch):
    """The heap keeps it (for speed), so the system calls it taken."""

    def alone():  # what other processes take meanwhile does not count here
        return SimpleNamespace(available=8e9 - psutil.Process().memory_info().rss)

    monkeypatch.setattr(nst.psutil, "virtual_memory", alone)
    before = nst._free_memory(torch.device("cpu"))
    list(paint(sizes=256, steps=2))
    assert nst._free_memory(torch.device("cpu")) > before - 100e6


LIMITED = """
import resource, psutil, torch
import nst_helpers as nst
photo = nst.load_image("images/content/temple.jpg")
style = nst.load_image("images/style/poppies.jpg")
vgg = nst.load_vgg19(pooling="avg")
run = nst.stylize(photo, style, vgg=vgg, sizes=(64, 256), steps=(3, 20))
step = next(run)
held = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (held + 60_000_000, -1))
try:
    nst.stylize(photo, style, vgg=vgg, sizes=640)
except ValueError as error:
    print(error)
try:
    for step in run:
        pass
except (MemoryError, ValueError) as error:
    print(type(error).__name__, error)
print(step.index, step.image.isfinite().all().item())
"""


def test_a_process_with_little_memory_gets_sentences_and_keeps_its_picture(root):
    pytest.importorskip("resource", reason="limits as on Linux")
    run = subprocess.run([sys.executable, "-c", LIMITED], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    refused, stopped, kept = run.stdout.splitlines()
    assert re.search(r"^content of 640 × 427 pixels needs about 1\.\d GB.* px would fit$", refused)
    assert re.search(r"GB are free; a long|^MemoryError no memory for a step at 256 × 171", stopped)
    assert kept == "3 True"


def test_a_huge_learning_rate_still_gives_a_picture(paint):
    with pytest.warns(RuntimeWarning, match="back to the best picture"):
        steps = list(paint(optimizer="adam", lr=1e4, steps=30))
    assert any(step.note for step in steps)
    totals = [step.losses["total"] for step in steps]
    assert totals[-1] <= totals[0]
    assert max(totals) <= nst.EXPLODED * totals[0]
    assert steps[-1].image.std() > 0.05  # neither black nor white


def test_a_huge_learning_rate_with_lbfgs_gives_a_picture_or_an_error(paint):
    steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            steps.extend(iter(paint(lr=1e4, steps=30)))
            advice = "none needed"
        except RuntimeError as error:
            advice = str(error)
    assert advice == "none needed" or "lower the weights or lr" in advice
    assert steps[-1].losses["total"] <= steps[0].losses["total"]
    assert 0.05 < steps[-1].image.std() < 0.35


class Flawed(torch.nn.Module):
    """The real network, which returns NaN (or its gradient does) at chosen calls."""

    def __init__(self, vgg, bad_calls, in_gradient=False):
        super().__init__()
        self.vgg, self.bad_calls, self.in_gradient, self.calls = vgg, bad_calls, in_gradient, 0
        self.mean = vgg.mean

    def forward(self, image, layers):
        features = self.vgg(image, layers)
        if image.requires_grad:
            self.calls += 1
            if self.calls in self.bad_calls:
                for name, value in features.items():
                    if self.in_gradient:
                        value.register_hook(lambda gradient: gradient * math.nan)
                    else:
                        features[name] = value * math.nan
        return features


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_nan_goes_back_to_the_best_picture(paint, avg_vgg, optimizer, in_gradient):
    flawed = Flawed(avg_vgg, {6, 7}, in_gradient)
    with pytest.warns(RuntimeWarning, match="back to the best picture"):
        steps = list(paint(vgg=flawed, optimizer=optimizer, steps=20))
    best = min(step.losses["total"] for step in steps[:5])
    for step in steps[5:7]:
        assert "back to the best picture" in step.note
        assert step.losses["total"] == best
    assert all(step.image.isfinite().all() for step in steps)
    assert steps[-1].losses["total"] < best  # it went on


def test_endless_nan_ends_with_an_error_and_the_last_picture(paint, avg_vgg):
    steps = []
    run = paint(vgg=Flawed(avg_vgg, range(4, 100)), steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(RuntimeError, match="gentler restarts; lower the weights"):
            steps.extend(iter(run))
    step = steps[-1]
    assert step.image.isfinite().all()
    assert math.isfinite(step.losses["total"])


def test_nan_from_the_start_is_an_error(paint, avg_vgg):
    with pytest.raises(RuntimeError, match="the loss became nan"):
        list(paint(vgg=Flawed(avg_vgg, range(100))))


def test_no_gradient_changes_nothing(paint):
    nothing = nst.Weights(content=0.0, style=0.0)
    steps = list(paint(weights=nothing, init="content", steps=30))
    assert torch.equal(steps[0].image, steps[-1].image)
    assert len(steps) == 11  # nothing moved in ten steps: no use in going on


def test_a_size_ends_when_nothing_visible_changes(paint):
    weights = nst.Weights(style=0.0)  # the photograph is its own best picture
    run = paint(weights=weights, init="noise", sizes=(32, 48), steps=500, tolerance=4 / 255)
    steps = list(run)
    first = [step for step in steps if step.size == 32]
    assert 11 < len(first) < 500
    assert steps[-1].size == 48
    moved = [(steps[i].image - steps[i - 10].image).abs().mean() for i in range(10, len(first))]
    assert moved[-1] < 4 / 255 <= min(moved[:-1], default=1)
    patient = paint(weights=weights, init="content", steps=30, tolerance=0)
    assert len(list(patient)) == 30


def test_an_enlarged_picture_gets_the_edges_of_the_photograph(paint, temple):
    nothing = nst.Weights(content=0.0, style=0.0)
    steps = list(paint(weights=nothing, init="content", sizes=(32, 64), steps=1))
    assert (steps[-1].image - nst.resize(temple, 64)).abs().mean() < 0.01
    blurred = interpolate(nst.resize(temple, 32), steps[-1].image.shape[-2:], mode="bicubic")
    assert (blurred - nst.resize(temple, 64)).abs().mean() > 0.03


def likeness(image, photograph):
    """The correlation of two pictures' brightness, after a blur that removes strokes."""
    pair = [avg_pool2d(p.mean(1), 3).flatten() for p in (image, photograph)]
    return torch.corrcoef(torch.stack(pair))[0, 1].abs().item()


def test_grey_content_gets_the_colours_of_the_painting(paint, temple, starry_night):
    grey = temple.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    steps = list(paint(content=grey, steps=60))
    totals, last = [step.losses["total"] for step in steps], steps[-1].image
    assert totals[-1] < 0.2 * totals[0]
    assert 0.05 < last.std() < 0.35  # neither black nor noise
    assert likeness(last, nst.resize(grey, 64)) > 0.3
    assert (last.mean((0, 2, 3)) - starry_night.mean((0, 2, 3))).abs().max() < 0.1


def test_a_style_of_one_colour_is_refused(paint, temple):
    with pytest.raises(ValueError, match="all of one colour"):
        paint(style=torch.full_like(temple, 0.4))
    with pytest.raises(ValueError, match="all of one colour"):
        paint(style=torch.zeros(1, 3, 1, 1))


def test_a_picture_of_ones_own_to_start_from_at_two_sizes(paint, temple):
    nothing = nst.Weights(content=0.0, style=0.0)
    steps = list(paint(weights=nothing, init=temple.flip(3), sizes=(32, 64), steps=1))
    expected = nst.resize(nst.resize(temple.flip(3), 32), 64)[..., :42, :]
    assert (steps[-1].image[..., :42, :] - expected).abs().mean() < 0.02


def test_breaking_out_and_starting_again(paint):
    for step in paint(steps=50):
        if step.index == 3:
            break
    assert step.index == 3
    again = next(paint(init=step.image))
    assert torch.allclose(again.image, step.image, atol=1e-5)


def test_the_callers_grad_mode_is_left_alone(paint):
    with torch.no_grad():
        run = paint(steps=5)
        totals = [step.losses["total"] for step in run]
        assert not torch.is_grad_enabled()
    assert totals[-1] < totals[0]
    assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def kernel(root):
    """A real kernel in notebooks/; call it with code, get all messages it published."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(root / "notebooks"))

    def execute(code, interrupt_after=None):
        client.execute(code)
        messages, seen = [], 0
        while True:
            message = client.get_iopub_msg(timeout=60)
            messages.append(message)
            if message["msg_type"] == interrupt_after:
                seen += 1
                if seen == 3:
                    manager.interrupt_kernel()
            state = message["content"].get("execution_state")
            if message["msg_type"] == "status" and state == "idle":
                return messages

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


PAINT_FOR_EVER = """
import nst_helpers as nst
content = nst.load_image("../images/content/temple.jpg", 64)
style = nst.load_image("../images/style/poppies.jpg", 64)
run = nst.stylize(content, style, sizes=64, steps=100_000, tolerance=0)
"""


def contents(messages, kind):
    return [message["content"] for message in messages if message["msg_type"] == kind]


def test_interrupting_the_kernel_keeps_the_picture(kernel):
    """As a student does it: the stop button, in a real kernel, in the middle of a loop."""
    loop = "for step in run:\n    print(step.index, flush=True)"
    messages = kernel(PAINT_FOR_EVER + loop, interrupt_after="stream")
    assert [error["ename"] for error in contents(messages, "error")] == ["KeyboardInterrupt"]
    messages = kernel("print(nst.to_pil(step.image).size, step.index >= 3)")
    assert contents(messages, "stream")[0]["text"] == "(64, 43) True\n"


def test_watch_shows_the_picture_and_keeps_it_when_interrupted(kernel):
    loop = "for step in nst.watch(run, 'a temple', every=0.1):\n    pass"
    messages = kernel(PAINT_FOR_EVER + loop, interrupt_after="update_display_data")
    assert [error["ename"] for error in contents(messages, "error")] == ["KeyboardInterrupt"]
    line, figure = contents(messages, "display_data")  # made once, then renewed in place
    assert "%, 64 px, about" in line["data"]["text/plain"]
    assert figure["data"]["text/plain"] == "a temple"
    assert figure["metadata"]["image/jpeg"] == {"alt": "a temple", "width": 512, "height": 344}
    line, figure = contents(messages, "update_display_data")[-2:]
    assert line["data"]["text/plain"].startswith("stopped after ")
    assert nst.load_image(base64.b64decode(figure["data"]["image/jpeg"])).shape == (1, 3, 43, 64)
    messages = kernel("print(step.image.shape[-1], step.index >= 2)")  # the third was on its way
    assert contents(messages, "stream")[0]["text"] == "64 True\n"


def test_watch_passes_everything_on(paint, capsys):
    steps = list(nst.watch(paint(steps=4), "a temple", every=0))
    assert [step.index for step in steps] == [1, 2, 3, 4]
    assert "done after 4 of 4 steps" in capsys.readouterr().out
    for step in nst.watch(paint(steps=9), "a temple"):
        if step.index == 2:
            break
    assert "stopped after 2 of 9 steps" in capsys.readouterr().out
