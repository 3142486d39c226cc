"""Masks, several styles, and their parts in recipes: what notebook 07 relies on."""

import io

import pytest
import torch
from PIL import Image

import nst_helpers as nst
import nst_studio

S = nst.Style


@pytest.fixture
def features():
    return torch.rand(
        1, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def mask():
    """Of a picture twice as large as the features, with values between 0 and 1."""
    mask = torch.rand(10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask[:, 8:] = 0
    return mask


@pytest.fixture
def halves(temple):
    """The left part of the temple, and the rest."""
    left = torch.zeros(temple.shape[-2:])
    left[:, :40] = 1
    return left, 1 - left


def first(content, style, vgg, **options):
    options = {"sizes": 48, "steps": 1, "dtype": torch.float32} | options
    return next(nst.stylize(content, style, vgg=vgg, **options))


# -------------------------------------------------------------------- the guided Gram matrix


def test_guided_gram_matrix_is_a_weighted_mean_over_positions(features, mask):
    m = mask.view(5, 2, 6, 2).mean((1, 3))
    positions = [(y, x) for y in range(5) for x in range(6)]
    outer = sum(m[y, x] * features[0, :, y, x].outer(features[0, :, y, x]) for y, x in positions)
    torch.testing.assert_close(nst.shrink(mask, features), m)
    torch.testing.assert_close(nst.guided_gram(features, mask)[0], outer / m.sum())


def test_the_fast_guided_gram_matrix_and_its_gradient(features, mask):
    A, results = nst.gram_matrix(features.flip(1))[0], []
    for gram in (lambda F: nst.guided_gram(F, mask)[0], lambda F: nst.fast_gram(F, mask)):
        leaf = features.clone().requires_grad_()
        loss = (gram(leaf) - A).square().mean()
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results)
    outside = nst.shrink(mask, features) == 0
    assert outside.any()
    assert (results[1][1][..., outside] == 0).all()


# ------------------------------------------------------------------------- several paintings


def test_a_mask_of_ones_paints_the_same(temple, starry_night, avg_vgg):
    ones = torch.ones(temple.shape[-2:])
    one, other = (
        first(temple, S(starry_night, mask=mask, source=source), avg_vgg).losses
        for mask, source in [(None, None), (ones, torch.ones(starry_night.shape[-2:]))]
    )
    assert one == pytest.approx(other, rel=1e-4)


def test_two_halves_of_a_painting_are_one(temple, starry_night, avg_vgg):
    one = first(temple, starry_night, avg_vgg)
    two = first(temple, [S(starry_night, 0.5), S(starry_night, 0.5)], avg_vgg)
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    torch.testing.assert_close(two.image, one.image)


def test_a_style_counts_in_its_layers_only(temple, starry_night, avg_vgg):
    losses = first(temple, S(starry_night, layers=["relu3_1"]), avg_vgg).losses
    usual = first(temple, starry_night, avg_vgg).losses
    assert losses["relu3_1"] == pytest.approx(usual["relu3_1"])
    assert losses["style"] == pytest.approx(0.2 * usual["relu3_1"])


def test_a_small_region_is_pulled_as_hard_as_a_large_one(starry_night, avg_vgg):
    """The gradient of a pixel does not depend on how large its region is."""
    tile = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    content, pulls = tile.repeat(1, 1, 4, 6), []  # all parts of it look alike
    for width in (96, 48, 32):
        mask = torch.zeros(64, 96)
        mask[:, :width] = 1
        losses_of = nst.relative_losses(avg_vgg, content, S(starry_night, mask=mask), nst.Weights())
        x = content.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses_of(x)["relu2_1"], x)
        pulls.append(gradient[..., 16:48, 8:16].abs().mean().item())  # in all three regions
    assert pulls == pytest.approx([pulls[0]] * 3, rel=0.1)


def test_each_region_takes_its_own_painting(temple, starry_night, picture, avg_vgg, halves):
    wave = picture("great_wave", 96)
    styles = [S(x, mask=mask) for x, mask in zip((starry_night, wave), halves, strict=True)]
    run = nst.stylize(temple, styles, vgg=avg_vgg, sizes=(48, 96), steps=20, tolerance=0)
    *_, step = run
    nothing = nst.Weights(content=0.0)
    for mine, other, mask in zip((starry_night, wave), (wave, starry_night), halves, strict=True):
        own, foreign = (
            nst.relative_losses(avg_vgg, temple, S(x, mask=mask), nothing)(step.image)["style"]
            for x in (mine, other)
        )
        assert own < 0.7 * foreign


def test_weights_stay_live_with_several_styles(temple, starry_night, picture, avg_vgg, halves):
    """A change of the style weight in the middle of a painting counts at the next step."""
    styles = [S(starry_night, mask=halves[0]), S(picture("great_wave", 96), mask=halves[1])]
    weights, options = nst.Weights(), {"sizes": 48, "steps": 6, "tolerance": 0}
    for step in nst.stylize(temple, styles, vgg=avg_vgg, weights=weights, **options):
        losses = step.losses
        total = losses["content"] + weights.style * losses["style"]
        assert losses["total"] == pytest.approx(total, rel=1e-3)
        weights.style = 100 if step.index >= 3 else 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_number_formats(temple, starry_night, avg_vgg, halves, dtype):
    styles = [S(starry_night, mask=halves[0]), S(starry_night, 0.5, mask=halves[1])]
    steps = list(nst.stylize(temple, styles, vgg=avg_vgg, sizes=48, steps=10, dtype=dtype))
    assert steps[-1].dtype == dtype
    assert steps[-1].losses["total"] < 0.6 * steps[0].losses["total"]


# --------------------------------------------------------------------------------- bad masks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[:-1], "mask must have the height and width of its picture"),
        (lambda m: 255 * m, "mask must lie in \\[0, 1\\], not between 0 and 255"),
        (lambda m: m - 0.5, "mask must lie in \\[0, 1\\], not between -0.5 and 0.5"),
        (lambda m: m * torch.nan, "mask must lie in \\[0, 1\\], not between nan and nan"),
        (lambda m: 0 * m, "mask is 0 everywhere: it selects nothing"),
        (lambda m: m, "no style paints 58.3% of the photograph: add a Style for that part"),
    ],
)
def test_a_bad_mask_is_refused_in_one_sentence(
    temple, starry_night, avg_vgg, halves, change, message
):
    with pytest.raises(ValueError, match=message):
        nst.stylize(temple, S(starry_night, mask=change(halves[0])), vgg=avg_vgg, sizes=48)


def test_a_source_of_another_size_is_refused(temple, starry_night, avg_vgg):
    style = S(starry_night, source=torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"source must have the height and width .* \(3, 4\)"):
        nst.stylize(temple, style, vgg=avg_vgg, sizes=48)


# ------------------------------------------------------------------------ files and recipes


def file_of(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def test_masks_from_files(halves):
    grey = Image.fromarray((halves[0] * 102).byte().numpy())
    torch.testing.assert_close(nst.load_mask(file_of(grey)), halves[0] * 0.4)
    clear = Image.new("RGBA", grey.size, (255, 255, 255, 0))
    clear.paste((255, 255, 255, 51), (0, 0, 30, 20))
    mask = nst.load_mask(file_of(clear))
    assert mask[:20, :30].unique().tolist() == pytest.approx([0.2])
    assert mask.sum().item() == pytest.approx(20 * 30 * 0.2)


def test_opacity_comes_back_from_the_file(temple, halves):
    file = file_of(nst.to_pil(temple, opacity=halves[1]))
    assert torch.equal(nst.load_mask(file), halves[1])
    shown = nst.load_image(file)
    assert (shown[..., :40] == 1).all()  # white where it is transparent
    assert (shown - temple)[..., 40:].abs().max() < 0.01
    small = nst.to_pil(nst.resize(temple, 48), opacity=halves[1])  # a mask of another size
    assert small.getchannel("A").getextrema() == (0, 255)


def test_a_recipe_is_what_one_would_write_by_hand(root, avg_vgg):
    """Case 7: what a recipe leaves out, single layers among it, keeps its default."""
    recipe = {"content": "temple", "style": "starry_night", "mask": "temple_distance", "title": "x"}
    recipe |= {"source": "starry_night_sky", "style_scale": 0.5, "keep_colors": True}
    recipe |= {"weights": {"style": 30, "tv": 5}, "layers": {"relu4_1": 0.5}, "coarse_content": 3}
    other = {"style": "great_wave", "mask": "temple_front", "style_weight": 0.5}
    recipe["others"] = [other | {"only": ["relu3_1", "relu5_1"]}]
    options = {"vgg": avg_vgg, "sizes": (32, 48), "steps": (3, 2)}
    images = root / "images"
    far, near, source = (
        nst.load_mask(images / f"masks/{name}.png")
        for name in ("temple_distance", "temple_front", "starry_night_sky")
    )
    photo, starry, wave = (
        nst.load_image(images / f"{name}.jpg")
        for name in ("content/temple", "style/starry_night", "style/great_wave")
    )
    starry, wave = (nst.match_colors(painting, photo) for painting in (starry, wave))
    styles = [S(starry, mask=far, source=source, scale=0.5)]
    styles.append(S(wave, 0.5, mask=near, layers=["relu3_1", "relu5_1"]))
    weights = nst.Weights(1, 30, 5, dict.fromkeys(nst.STYLE_LAYERS, 0.2) | {"relu4_1": 0.5})
    by_hand = nst.stylize(photo, styles, weights=weights, coarse_content=3, **options)
    for ours, theirs in zip(nst_studio.follow(recipe, images, **options), by_hand, strict=True):
        assert ours.losses == theirs.losses
        assert torch.equal(ours.image, theirs.image)
