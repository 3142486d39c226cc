"""Pictures in and out: every kind of input gives the right picture or one clear sentence."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import nst_helpers as nst


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(image):
    return [round(value, 2) for value in image.mean((0, 2, 3)).tolist()]


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


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="1 or more"):
        nst.load_image(Image.new("RGB", (4, 4)), size)


def test_every_source_gives_the_same(tmp_path):
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")
    path = tmp_path / "ein Bild mit Ümlaut.png"
    picture.save(path)
    expected = nst.load_image(picture)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert torch.equal(nst.load_image(source), expected)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("1", (4, 4), 1), [1, 1, 1]),
        (Image.new("L", (4, 4), 51), [0.2, 0.2, 0.2]),
        (Image.new("LA", (4, 4), (0, 0)), [1, 1, 1]),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), [1, 0, 0]),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), [1, 1, 1]),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), [1, 0.5, 0.5]),
        (Image.new("RGB", (4, 4), (255, 0, 51)).convert("P"), [1, 0, 0.2]),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [1, 0, 0]),
        (Image.new("RGB", (4, 4), (255, 0, 0)).convert("YCbCr"), [1, 0, 0]),
        (Image.new("HSV", (4, 4), (0, 255, 255)), [1, 0, 0]),
        (Image.fromarray(np.full((4, 4), 32768, np.uint16)), [0.5, 0.5, 0.5]),
        (Image.fromarray(np.full((4, 4), 128, np.int32)), [0.5, 0.5, 0.5]),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), [0.5, 0.5, 0.5]),
        (Image.new("RGB", (1, 1), (0, 255, 0)), [0, 1, 0]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(picture, expected):
    image = nst.load_image(picture)
    assert image.shape == (1, 3, picture.height, picture.width)
    assert colour(image) == pytest.approx(expected, abs=0.01)


def test_transparent_palette_becomes_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    assert colour(nst.load_image(encoded(picture, transparency=0))) == [1, 1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (24, 16))
    stored.paste((255, 0, 0), (0, 0, 12, 8))  # red: upper left as stored
    image = nst.load_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    turned = orientation >= 5
    assert image.shape[-2:] == ((24, 16) if turned else (16, 24))
    height, width = image.shape[-2:]
    corners = {
        "upper left": image[0, 0, 2, 2],
        "upper right": image[0, 0, 2, width - 3],
        "lower right": image[0, 0, height - 3, width - 3],
        "lower left": image[0, 0, height - 3, 2],
    }
    where = ["upper left", "upper right", "lower right", "lower left"]
    where += ["upper left", "upper right", "lower right", "lower left"]
    assert max(corners, key=corners.get) == where[orientation - 1]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour(nst.load_image(data)) == [1, 0, 0]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jpg cannot be read as a picture"):
        nst.load_image(path)


def test_a_truncated_picture_is_refused():
    data = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    with pytest.raises(ValueError, match=r"cannot be read as a picture.*truncated"):
        nst.load_image(data[: len(data) // 2])


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no-such\.jpg does not exist"):
        nst.load_image(tmp_path / "no-such.jpg")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        nst.load_image(tmp_path)
    with pytest.raises(ValueError, match="NoneType"):
        nst.load_image(None)


def test_a_huge_picture_is_refused_before_it_is_read():
    header = Image.new("1", (20000, 20000))
    with pytest.raises(ValueError, match="too large to open safely"):
        nst.load_image(encoded(header))


def test_round_trip_is_exact(temple):
    assert torch.equal(nst.load_image(nst.to_pil(temple)), temple.mul(255).round() / 255)


def test_to_pil_clamps():
    assert nst.to_pil(torch.full((1, 3, 2, 2), 1.7)).getpixel((0, 0)) == (255, 255, 255)
    assert nst.to_pil(torch.full((1, 3, 2, 2), -1.0)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4, 3)), "got ndarray"),
        (torch.zeros(4, 4), r"got \(4, 4\)"),
        (torch.zeros(2, 3, 4, 4), r"got \(2, 3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), r"got \(1, 3, 0, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
    ],
)
def test_to_pil_refuses_what_is_no_picture(wrong, message):
    with pytest.raises(ValueError, match=message):
        nst.to_pil(wrong)


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
    ):
        matched = nst.match_colors(image, reference)
        assert matched.isfinite().all()
        assert torch.allclose(matched.mean((2, 3)), reference.mean((2, 3)), atol=0.05)
