"""Pictures in and out, scaled and recoloured; test_inputs.py has what else may be given."""

import io

import pytest
import torch
from PIL import Image

import nst_helpers as nst


def test_shape_range_and_orientation(root):
    image = nst.load_image(root / "images/content/temple.jpg")
    assert image.shape == (1, 3, 427, 640)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert 0 <= image.min() < 0.05
    assert 0.95 < image.max() <= 1
    sky, trees = image[..., :50, :].mean(), image[..., -50:, :].mean()
    assert sky > 2 * trees


def test_size_is_the_long_side(root):
    assert nst.load_image(root / "images/content/temple.jpg", 256).shape == (1, 3, 171, 256)
    assert nst.load_image(Image.new("RGB", (30, 60)), 120).shape == (1, 3, 120, 60)
    assert nst.load_image(Image.new("RGB", (1000, 1)), 10).shape == (1, 3, 1, 10)


def test_every_source_gives_the_same(tmp_path):
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")
    path = tmp_path / "ein Bild mit Ümlaut.png"
    picture.save(path)
    expected = nst.load_image(picture)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert torch.equal(nst.load_image(source), expected)


def test_round_trip_is_exact(temple):
    assert torch.equal(nst.load_image(nst.to_pil(temple)), temple.mul(255).round() / 255)


def test_to_pil_clamps_a_few_stray_values(temple):
    stray = temple.clone()
    stray[..., 0, 0], stray[..., 0, 1] = 1.7, -1.0
    picture = nst.to_pil(stray)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_resize(temple):
    assert nst.resize(temple, 48).shape == (1, 3, 32, 48)
    large = nst.resize(temple, 200)
    assert large.shape == (1, 3, 133, 200)
    assert 0 <= large.min() <= large.max() <= 1
    assert torch.allclose(nst.resize(temple, 96), temple, atol=1e-5)
    assert large.mean() == pytest.approx(temple.mean().item(), abs=0.01)


def test_match_colors(temple, starry_night):
    pale = temple * 0.4 + 0.3  # far from the borders, so that clamping changes little
    soft = starry_night * 0.4 + 0.3
    matched = nst.match_colors(pale, soft)[0].flatten(1)
    wanted = soft[0].flatten(1)
    assert torch.allclose(matched.mean(1), wanted.mean(1), atol=0.01)
    assert torch.allclose(matched.cov(), wanted.cov(), atol=0.001)
    assert torch.allclose(nst.match_colors(pale, pale), pale, atol=1e-3)


def test_match_colors_of_grey_and_of_one_colour(temple):
    grey = temple.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for image, reference in (
        (grey, temple),
        (temple, grey),
        (temple, torch.full_like(temple, 0.3)),
        (temple, torch.full((1, 3, 1, 1), 0.3)),
        (torch.full((1, 3, 1, 1), 0.3), temple),
    ):
        matched = nst.match_colors(image, reference)
        assert matched.isfinite().all()
        assert torch.allclose(matched.mean((2, 3)), reference.mean((2, 3)), atol=0.05)
