"""What is given: the right picture comes out, or one sentence that says what is wrong. Tables."""

import io
import re
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageCms

import nst_helpers as nst

WHITE, RED, PINK, GREEN, GREY = (1, 1, 1), (1, 0, 0), (1, 0.5, 0.5), (0, 1, 0), (0.5, 0.5, 0.5)


def plain(mode, colour, size=(6, 4)):
    return Image.new(mode, size, colour)


def grey(value, dtype):
    return Image.fromarray(np.full((4, 6), value, dtype))


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def swapping_profile():
    """The colour profile sRGB, with the names of its red and its green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    return re.sub(b"[rg]XYZ", lambda match: names[match[0]], profile)


red, half_red, cmyk = plain("RGB", "red"), plain("RGBA", (255, 0, 0, 128)), (0, 255, 255, 0)
PROFILE = {"icc_profile": swapping_profile()}
FILES = {  # a PIL image or the bytes of a file, and the mean colour that must come out
    "grey": (encoded(plain("L", 128), "JPEG"), GREY),
    "grey and alpha": (encoded(plain("LA", (0, 0))), WHITE),
    "grey times alpha": (plain("La", (0, 0)), WHITE),
    "16-bit grey": (encoded(grey(32768, np.uint16)), GREY),
    "16-bit grey, as older Pillows open it": (grey(32768, np.int32), GREY),
    "floats": (encoded(grey(0.5, np.float32), "TIFF"), GREY),
    "palette": (encoded(red.convert("P")), RED),
    "palette, one index transparent": (encoded(plain("P", 0), transparency=0), WHITE),
    "one colour transparent": (encoded(red, transparency=(255, 0, 0)), WHITE),
    "half transparent": (encoded(half_red), PINK),
    "colours times alpha": (half_red.convert("RGBa"), PINK),
    "CMYK": (encoded(plain("CMYK", cmyk), "JPEG"), RED),
    "CMYK, profile of RGB": (encoded(plain("CMYK", cmyk), "JPEG", **PROFILE), RED),
    "profile": (encoded(red, "JPEG", **PROFILE), GREEN),
    "profile and alpha": (encoded(half_red, **PROFILE), (0.5, 1, 0.5)),
    "damaged profile": (encoded(red, icc_profile=b"no profile"), RED),
    "animation": (encoded(red, "GIF", save_all=True, append_images=[half_red]), RED),
    "one pixel": (encoded(plain("RGB", "lime", (1, 1))), GREEN),
}


@pytest.mark.parametrize("case", FILES)
def test_every_kind_of_image(case, tmp_path):
    source, colour = FILES[case]
    if isinstance(source, bytes):
        (tmp_path / "me").write_bytes(source)
        source = tmp_path / "me"
    for image in (nst.load_image(source), nst.load_image(source, 3)):
        assert image.dtype == torch.float32
        assert image.mean((0, 2, 3)).tolist() == pytest.approx(colour, abs=0.01)


def test_exif_orientation_is_obeyed():
    exif, stored = Image.Exif(), Image.new("RGB", (24, 16))
    stored.paste((255, 0, 0), (0, 0, 12, 8))  # the upper left quarter, as stored
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        image = nst.load_image(encoded(stored, "JPEG", exif=exif))
        assert image.shape[-2:] == ((24, 16) if orientation >= 5 else (16, 24))
        corners = [image[0, 0, y, x].item() for y, x in ((2, 2), (2, -3), (-3, -3), (-3, 2))]
        assert corners.index(max(corners)) == (orientation - 1) % 4


NO_IMAGES = {
    "missing": ("no-such.jpg", r"no-such\.jpg does not exist \(seen from /"),
    "folder": (".", r"\. is not an image, or is damaged"),
    "text": (b"<!doctype html><title>404</title>", "bytes is not an image"),
    "truncated": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:2000], "file is truncated"),
    "array": (np.zeros((4, 6, 3)), "ndarray is not an image"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_not_an_image_is_named_in_one_sentence(case, tmp_path):
    source, message = NO_IMAGES[case]
    if isinstance(source, bytes):
        (tmp_path / "me.jpg").write_bytes(source)
        with pytest.raises(ValueError, match=r"me\.jpg is not an image, or is damaged"):
            nst.load_image(tmp_path / "me.jpg")
    error = FileNotFoundError if case == "missing" else ValueError
    with pytest.raises(error, match=message) as raised:
        nst.load_image(source)
    assert "\n" not in str(raised.value)


grid = torch.full((1, 3, 32, 32), 0.5)
NO_PICTURES = {
    "array": (grid.numpy(), "be a tensor .*, see load_image; got ndarray"),
    "path": ("cat.jpg", "got str"),
    "no batch": (grid[0], r"got \(3, 32, 32\)"),
    "grey": (grid[:, :1], r"got \(1, 1, 32, 32\)"),
    "channels last": (grid.permute(0, 2, 3, 1), r"got \(1, 32, 32, 3\)"),
    "no pixels": (grid[..., :0], r"got \(1, 3, 32, 0\)"),
    "integers": ((grid * 255).byte(), "hold floats in .*not torch.uint8; divide it by 255"),
    "0 to 255": (grid * 255, r"lie in \[0, 1\], not between 127.5 and 127.5"),
    "ImageNet's range": (grid * 9 - 4.75, r"lie in \[0, 1\], not between -0.25 and -0.25"),
    "NaN": (grid * torch.nan, "not between nan and nan"),
}


@pytest.mark.parametrize("case", NO_PICTURES)
def test_a_tensor_that_is_not_a_picture_is_refused(case, vgg):
    wrong, message = NO_PICTURES[case]
    for name, function, *arguments in (
        ("image", nst.to_pil, wrong),
        ("image", nst.resize, wrong, 16),
        ("image", vgg, wrong, ["relu1_1"]),
        ("content", nst.stylize, wrong, grid),
        ("style", nst.stylize, grid, wrong),
    ):
        with pytest.raises(ValueError, match=f"^{name} must .*{message}"):
            function(*arguments)


def weights(layers=("relu1_1",), **values):
    return {"weights": nst.Weights(**values, layers=dict.fromkeys(layers, 1.0))}


OPTIONS = {
    "content layer": ({"content_layers": ["relu9_1"]}, "unknown layer: relu9_1; the layers are c"),
    "no content layer": ({"content_layers": []}, "unknown layer: none; the layers are conv1_1"),
    "style layer": (weights(layers=["relu41"]), "unknown layer: relu41; the layers are conv1_1"),
    "negative weight": (weights(style=-1.0), "finite and not negative: relu1_1 in Weights"),
    "steps": ({"sizes": (64, 96), "steps": (3,)}, r"\[64, 96\] need as many steps, .*got \[3\]"),
    "no steps": ({"steps": 0}, r"steps, all at least 1; got \[0, 0, 0\]"),
    "no sizes": ({"sizes": ()}, r"sizes \[\] need"),
    "start": ({"init": "nosie"}, "init must be a picture or one of matched, .*, not 'nosie'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_work_is_refused_at_once(case, vgg):
    options, message = OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        nst.stylize(grid, grid, vgg=vgg, **options)


@pytest.mark.parametrize("options", [{"weights": "imagenet"}, {"pooling": "mean"}])
def test_unknown_weights_and_poolings_are_refused(options):
    with pytest.raises(ValueError, match='"oxford" or "torchvision", and pooling "max" or "avg"'):
        nst.load_vgg19(**options)


def test_a_painting_beyond_the_memory_is_refused_with_a_size_that_fits(vgg, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100e6))
    message = r"^2000 px would take .* GB .* 0\.1 GB are free; a long side of (\d+) px would fit$"
    with pytest.raises(MemoryError, match=message) as raised:
        nst.stylize(grid, grid, vgg=vgg, sizes=(64, 2000))
    size = int(re.search(message, str(raised.value))[1])
    nst.stylize(grid, grid, vgg=vgg, sizes=size)
    with pytest.raises(MemoryError):
        nst.stylize(grid, grid, vgg=vgg, sizes=size + 1)
