"""Whatever is given as a picture: the right picture, or one clear sentence. A table, and a fuzz."""

import base64
import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import nst_helpers as nst

RED, GREEN, BLUE, WHITE, BLACK = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode, colour, size=(6, 4)):
    return Image.new(mode, size, colour)


def red(mode="RGB"):
    return plain("RGB", "red").convert(mode)


def grey(value, dtype):
    return Image.fromarray(np.full((4, 6), value, dtype))


def palette(**options):
    picture = plain("P", 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(picture, **options)


def animation(kind, **options):
    frames = [plain("RGB", name) for name in ("red", "blue")]
    options = {"save_all": True, "append_images": frames[1:], **options}
    return encoded(frames[0], kind, **options)


def oriented(orientation, kind="JPEG"):
    """A picture of 24 × 16 pixels as stored, red in its upper left quarter."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (24, 16))
    stored.paste((255, 0, 0), (0, 0, 12, 8))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return encoded(stored, kind, exif=exif, **options)


def noise(kind, **options):
    return encoded(Image.effect_noise((64, 64), 50).convert("RGB"), kind, **options)


def half(data):
    return data[: len(data) // 2]


def chunk(kind, data):
    """A piece of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(width, height):
    """The beginning of a PNG file that claims to be this large."""
    head = chunk(b"IHDR", struct.pack(">II", width, height) + b"\1\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + head + b"\0\0\0\x63IDAT" + bytes(99)


def deep_grey_with_a_transparent_one(value=0x8000):
    """A PNG of 16 bits whose only grey counts as transparent."""
    head = struct.pack(">IIBBBBB", 6, 4, 16, 0, 0, 0, 0)
    grey = struct.pack(">H", value)
    rows = zlib.compress((b"\0" + grey * 6) * 4)
    chunks = ((b"IHDR", head), (b"tRNS", grey), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def swapping_profile():
    """The colour profile sRGB, but with the names of its red and its green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    return re.sub(b"[rg]XYZ", lambda match: names[match[0]], profile)


def with_broken_exif():
    data = encoded(red(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    return data.replace(b"MM\0*", b"M?\0*")


def closed_file():
    file = io.BytesIO(encoded(red()))
    file.close()
    return file


# What is given, and the colour (mean of red, green, blue) and the shape (H, W) that must come out.
RIGHT = {
    "mode 1": (plain("1", 1), WHITE),
    "mode L": (plain("L", 51), (0.2, 0.2, 0.2)),
    "mode LA, transparent": (plain("LA", (0, 0)), WHITE),
    "mode LA, opaque": (plain("LA", (51, 255)), (0.2, 0.2, 0.2)),
    "mode La": (plain("La", (0, 0)), WHITE),
    "mode P": (palette(), RED),
    "mode P, transparent index": (palette(transparency=0), WHITE),
    "mode P, half transparent": (palette(transparency=b"\x80\xff"), (1, 0.5, 0.5)),
    "mode PA": (red().convert("P").convert("PA"), RED),
    "mode RGB": (red(), RED),
    "RGB, one colour transparent": (encoded(red(), transparency=(255, 0, 0)), WHITE),
    "L, one grey transparent": (encoded(plain("L", 7), transparency=7), WHITE),
    "mode RGBA, opaque": (plain("RGBA", (255, 0, 0, 255)), RED),
    "mode RGBA, transparent": (plain("RGBA", (255, 0, 0, 0)), WHITE),
    "mode RGBA, half": (plain("RGBA", (255, 0, 0, 128)), (1, 0.5, 0.5)),
    "mode RGBa": (plain("RGBA", (255, 0, 0, 128)).convert("RGBa"), (1, 0.5, 0.5)),
    "mode RGBX": (red("RGBX"), RED),
    "mode CMYK": (plain("CMYK", (0, 255, 255, 0)), RED),
    "mode YCbCr": (red("YCbCr"), RED),
    "mode HSV": (plain("HSV", (0, 255, 255)), RED),
    "mode LAB": (plain("LAB", (255, 128, 128)), WHITE),
    "mode I, bytes": (grey(128, np.int32), (0.5, 0.5, 0.5)),
    "mode I, negative": (grey(-9, np.int32), BLACK),
    "mode I;16": (grey(32768, np.uint16), (0.5, 0.5, 0.5)),
    "mode I;16, dark": (grey(200, np.uint16), BLACK),
    "mode I;16B": (Image.frombytes("I;16B", (6, 4), b"\x80\0" * 24), (0.5, 0.5, 0.5)),
    "mode F": (grey(0.5, np.float32), (0.5, 0.5, 0.5)),
    "mode F, NaN": (grey(np.nan, np.float32), BLACK),
    "mode F, infinite": (grey(np.inf, np.float32), WHITE),
    "PNG, 16 bits": (encoded(grey(32768, np.uint16)), (0.5, 0.5, 0.5)),
    "PNG, 16 bits, transparent": (deep_grey_with_a_transparent_one(), WHITE),
    "PNG, 16 bits, dark": (encoded(grey(200, np.uint16)), BLACK),
    "TIFF, floats": (encoded(grey(0.5, np.float32), "TIFF"), (0.5, 0.5, 0.5)),
    "PFM, floats": (b"Pf\n6 4\n-1.0\n" + struct.pack("<f", 0.5) * 24, (0.5, 0.5, 0.5)),
    "PPM, 16 bits": (b"P6\n6 4\n65535\n" + b"\xff\xff\0\0\0\0" * 24, RED),
    "JPEG": (encoded(red(), "JPEG"), RED),
    "JPEG, progressive": (encoded(red(), "JPEG", progressive=True), RED),
    "JPEG, grey": (encoded(plain("L", 51), "JPEG"), (0.2, 0.2, 0.2)),
    "JPEG, CMYK": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "JPEG, profile": (encoded(red(), "JPEG", icc_profile=swapping_profile()), GREEN),
    "PNG, profile, half transparent": (
        encoded(plain("RGBA", (255, 0, 0, 128)), icc_profile=swapping_profile()),
        (0.5, 1, 0.5),
    ),
    "PNG, palette and profile": (palette(icc_profile=swapping_profile()), GREEN),
    "PNG, broken profile": (encoded(red(), icc_profile=b"no profile"), RED),
    "JPEG, CMYK, profile of RGB": (
        encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", icc_profile=swapping_profile()),
        RED,
    ),
    "JPEG, broken EXIF": (with_broken_exif(), RED),
    "PNG, interlaced bits": (encoded(plain("1", 1)), WHITE),
    "BMP": (encoded(red(), "BMP"), RED),
    "TIFF, compressed": (encoded(red(), "TIFF", compression="tiff_lzw"), RED),
    "WebP, transparent": (encoded(plain("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True), WHITE),
    "GIF, animated": (animation("GIF"), RED),
    "WebP, animated": (animation("WEBP", lossless=True), RED),
    "PNG, animated": (animation("PNG"), RED),
    "TIFF, two pages": (animation("TIFF"), RED),
    "1×1": (plain("RGB", "lime", (1, 1)), GREEN),
    "1×5000": (plain("RGB", "blue", (1, 5000)), BLUE),
    "5000×1": (encoded(plain("RGB", "blue", (5000, 1))), BLUE),
}

NO_PICTURE = "it is damaged, or its format is not supported; take JPEG or PNG"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200

# What is given, and what the one sentence must say.
WRONG = {
    "no bytes": (b"", NO_PICTURE),
    "text": (b"not a picture", NO_PICTURE),
    "HTML": (b"<!doctype html><title>404</title>", NO_PICTURE),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', NO_PICTURE),
    "HEIC": (HEIC, NO_PICTURE),
    "EPS": (encoded(red(), "EPS"), "EPS is not supported; save it as JPEG or PNG"),
    "PNG, header alone": (b"\x89PNG\r\n\x1a\n broken", NO_PICTURE),
    "PNG, truncated": (half(noise("PNG")), NO_PICTURE),
    "JPEG, truncated": (half(noise("JPEG")), "truncated"),
    "JPEG, progressive, truncated": (half(noise("JPEG", progressive=True)), "truncated"),
    "WebP, truncated": (half(noise("WEBP")), NO_PICTURE),
    "BMP, truncated": (half(noise("BMP")), "truncated"),
    "20000×20000": (encoded(plain("1", 0, (20000, 20000))), "80,000,000 pixels; make it smaller"),
    "10000×9000": (plain("1", 0, (10000, 9000)), "10,000 × 9,000 pixels; .* 1 to 80,000,000"),
    "PNG that claims 60000×60000": (png_header(60000, 60000), "80,000,000 pixels"),
    "0×0": (Image.new("RGB", (0, 0)), "0 × 0 pixels; there must be 1 to"),
    "0×5": (Image.new("RGB", (0, 5)), "0 × 5 pixels"),
    "None": (None, "NoneType cannot be read.*give a path, bytes, an open file or a PIL image"),
    "number": (7, "int cannot be read.*give a path"),
    "list": ([1, 2], "list cannot be read.*give a path"),
    "array of bytes": (
        np.zeros((4, 6, 3), np.uint8),
        r"ndarray \(4, 6, 3\) uint8.*Image.fromarray",
    ),
    "array of floats": (np.zeros((4, 6)), r"ndarray \(4, 6\) float64.*give a path"),
    "tensor": (torch.zeros(1, 3, 4, 6), r"Tensor \(1, 3, 4, 6\) torch.float32.*a picture already"),
    "text file object": (io.StringIO("text"), "StringIO cannot be read as a picture"),
    "closed file": (closed_file(), "BytesIO cannot be read as a picture.*closed"),
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("size", [None, 3])
def test_the_right_picture(case, size):
    source, colour = RIGHT[case]
    width, height = (source if isinstance(source, Image.Image) else opened(source)).size
    image = nst.load_image(source, size)
    if size is not None:
        width, height = (max(1, round(x * size / max(width, height))) for x in (width, height))
    assert image.shape == (1, 3, height, width)
    assert image.dtype == torch.float32
    assert image.mean((0, 2, 3)).tolist() == pytest.approx(colour, abs=0.01)


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("as_file", [False, True])
def test_one_clear_sentence(case, as_file, tmp_path):
    source, message = WRONG[case]
    if as_file and isinstance(source, bytes):
        path = tmp_path / "me.jpg"
        path.write_bytes(source)
        source, message = path, rf"me\.jpg cannot be read as a picture.*({message})"
    with pytest.raises(ValueError, match=message) as raised:
        nst.load_image(source)
    text = str(raised.value)
    assert "\n" not in text
    assert "0x" not in text  # no address of an object in memory
    assert len(text) < 300
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation, kind):
    image = nst.load_image(oriented(orientation, kind))
    height, width = image.shape[-2:]
    assert (height, width) == ((24, 16) if orientation >= 5 else (16, 24))
    corners = {
        "upper left": image[0, 0, 2, 2],
        "upper right": image[0, 0, 2, width - 3],
        "lower right": image[0, 0, height - 3, width - 3],
        "lower left": image[0, 0, height - 3, 2],
    }
    where = ["upper left", "upper right", "lower right", "lower left"] * 2
    assert max(corners, key=corners.get) == where[orientation - 1]


@pytest.mark.parametrize(
    "name",
    ["holiday in Rome.png", "Überraschung.png", "猫.png", "قطة.png", "🐈.png", "-x=1;#%.png"],
)
def test_any_name_will_do(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encoded(red()))
    file = path.open("rb")
    with file:
        for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), file):
            assert nst.load_image(source).mean((0, 2, 3)).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no-such.jpg", r"no-such\.jpg does not exist \(seen from /"),
        (".", r"\. is a folder, not a picture"),
        ("/dev/null", "/dev/null is no ordinary file"),
        ("https://example.org/cat.jpg", "is an address, not a file: download the picture"),
        ("file:///home/me/cat.jpg", "is an address, not a file"),
        ("data:image/png;base64," + "A" * 5000, r"^data:image.{90,110}… is an address"),
        ("", "'' does not exist"),
        ("null\0byte.jpg", "does not exist"),
        ("x" * 5000, "does not exist"),
        (os.fsdecode(b"\xff\xfe.jpg"), r"\?\?\.jpg does not exist"),
    ],
)
def test_what_is_no_file(path, message):
    for source in (path, Path(path)):
        if isinstance(source, Path) and (":" in path or not path):  # which Path changes
            continue
        with pytest.raises(FileNotFoundError, match=message) as raised:
            nst.load_image(source)
        str(raised.value).encode()  # it can be printed


def test_a_file_that_may_not_be_read(tmp_path, nobody):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(red()))
    path.chmod(0)
    with (
        nobody(),
        pytest.raises(ValueError, match=r"secret\.png cannot be read.*Permission denied"),
    ):
        nst.load_image(path)


@pytest.mark.parametrize("size", [0, -5, 2.5, "256", True, float("nan"), 10**30])
def test_sizes_that_are_none(size):
    for refuse in (lambda: nst.load_image(red(), size), lambda: nst.resize(picture(), size)):
        with pytest.raises(ValueError, match="size, the long side in pixels, must be a whole"):
            refuse()


def test_a_number_too_long_to_read():
    with pytest.raises(ValueError, match=r"1 or more and below 2\*\*63, not 10{98}$"):
        nst.load_image(red(), 10**400)


def test_sizes_beyond_reason():
    for refuse in (lambda: nst.load_image(red(), 20_000), lambda: nst.resize(picture(), 20_000)):
        with pytest.raises(ValueError, match=r"20,000 × .* pixels; there must be 1 to 80,000,000"):
            refuse()


def test_no_file_stays_open(tmp_path):
    path = tmp_path / "two.gif"
    path.write_bytes(animation("GIF"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            nst.load_image(path)
            path.with_suffix(".jpg").write_bytes(half(noise("JPEG")))
            with pytest.raises(ValueError, match="truncated"):
                nst.load_image(path.with_suffix(".jpg"))
    assert before is None or len(os.listdir("/proc/self/fd")) == before
    kept = Image.open(path)  # and one that a student opened stays open
    nst.load_image(kept)
    kept.seek(1)
    assert nst.load_image(kept).mean((0, 2, 3)).tolist() == [0, 0, 1]
    kept.close()


# ------------------------------------------------------------------------------ tensors


def picture(*shape, value=0.5, dtype=torch.float32):
    return torch.full(shape or (1, 3, 32, 32), value, dtype=dtype)


TENSORS = {
    "array": (np.zeros((4, 4, 3)), r"got ndarray \(4, 4, 3\) float64"),
    "list": ([[0.5]], "got list"),
    "None": (None, "got NoneType"),
    "path": ("cat.jpg", "see load_image; got cat.jpg"),
    "no batch": (picture(3, 4, 4), r"got \(3, 4, 4\)"),
    "map": (picture(4, 4), r"got \(4, 4\)"),
    "batch": (picture(2, 3, 4, 4), r"got \(2, 3, 4, 4\)"),
    "grey": (picture(1, 1, 4, 4), r"got \(1, 1, 4, 4\)"),
    "alpha": (picture(1, 4, 4, 4), r"got \(1, 4, 4, 4\)"),
    "channels last": (picture(1, 4, 4, 3), r"got \(1, 4, 4, 3\)"),
    "no pixels": (picture(1, 3, 0, 4), r"got \(1, 3, 0, 4\)"),
    "bytes": (picture(value=128, dtype=torch.uint8), "finite floats in .* got torch.uint8"),
    "complex": (picture(dtype=torch.complex64), "finite floats in .* got torch.complex64"),
    "NaN": (picture(value=torch.nan), "finite floats"),
    "infinite": (picture(value=torch.inf), "finite floats"),
    "0 to 255": (picture(value=128.0), r"must lie in \[0, 1\], not between 128 and 128; divide"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_no_pictures(case, vgg, tmp_path):
    wrong, message = TENSORS[case]
    right = torch.rand(1, 3, 32, 32)
    for refuse in (
        lambda: nst.to_pil(wrong),
        lambda: nst.save_image(wrong, tmp_path / "x.png"),
        lambda: nst.match_colors(wrong, right),
        lambda: nst.match_colors(right, wrong),
        lambda: nst.normalize_activations(vgg, [wrong]),
        lambda: nst.stylize(wrong, right, vgg=vgg, sizes=32),
        lambda: nst.stylize(right, wrong, vgg=vgg, sizes=32),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()
    assert not list(tmp_path.iterdir())
    if case != "batch":
        with pytest.raises(ValueError, match=message.replace("(1, 3, H, W)", "(N, 3, H, W)")):
            nst.resize(wrong, 16)
    if case != "map":
        with pytest.raises(ValueError, match="number 2, if it is no map"):
            nst.show(right, wrong, alt="two")


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-2.1, 2.6), (0, 255)])
def test_a_picture_in_another_range_is_not_painted(low, high, vgg):
    right, wrong = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32) * (high - low) + low
    for pair in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], not between"):
            nst.stylize(*pair, vgg=vgg, sizes=32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_as_good(dtype, vgg):
    image = torch.rand(1, 3, 32, 48).to(dtype).requires_grad_()
    assert nst.to_pil(image).size == (48, 32)
    assert nst.resize(image, 24).dtype == dtype
    assert nst.resize(image, 24).shape == (1, 3, 16, 24)
    assert vgg(image, ["relu1_1"])["relu1_1"].dtype == torch.float32
    last = list(nst.stylize(image, image.flip(3), vgg=vgg, sizes=32, steps=2))[-1]
    assert last.image.dtype == torch.float32


def test_show_needs_something():
    with pytest.raises(ValueError, match="at least one picture"):
        nst.show(alt="nothing")
    with pytest.raises(ValueError, match="number 1, if it is no map"):
        nst.show(torch.zeros(0, 4), alt="an empty map")
    with pytest.raises(ValueError, match="columns must be a whole number"):
        nst.show(picture(), alt="a picture", columns=-1)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (12, 1600)])
def test_a_line_of_pixels_is_shown(shape, monkeypatch):
    shown = []
    monkeypatch.setattr(nst, "display", lambda data, **_: shown.append(data["image/jpeg"]))
    nst.show(picture(1, 3, *shape, value=0.0), alt="a black line")
    with opened(base64.b64decode(shown[0])) as figure:
        assert max(figure.size) < 4000
        assert np.asarray(figure.convert("L")).mean() < 250  # not all white


def test_a_network_told_the_wrong_range(vgg, temple):
    with pytest.raises(ValueError, match=r"image must lie in \[0, 1\].*divide it by 255"):
        vgg(temple * 255, ["relu1_1"])
    with pytest.raises(ValueError, match=r"image must lie in \[0, 1\], not between nan"):
        vgg(temple * torch.nan, ["relu1_1"])
    stray = (temple * 255).requires_grad_()  # a step of L-BFGS that went too far comes back
    assert vgg(stray, ["relu1_1"])["relu1_1"].requires_grad


def test_colours_of_one_pixel(temple):
    lime = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    matched = nst.match_colors(temple, lime)
    assert (matched - lime).abs().mean() < 0.01
    middle = temple.mean((2, 3), keepdim=True)
    assert torch.allclose(nst.match_colors(lime, temple), middle, atol=1e-5)


# ------------------------------------------------------------------------------- memory


def test_pictures_beyond_the_memory_are_refused(tmp_path, monkeypatch):
    Image.new("RGB", (3000, 2000)).save(tmp_path / "large.png")
    large = nst.load_image(tmp_path / "large.png")
    small = nst.resize(large, 300)
    monkeypatch.setattr(nst, "_free_memory", lambda device: 160e6)
    message = "3,000 × 2,000 pixels needs about 0.3 GB of memory, and 0.2 GB are free; a long"
    with pytest.raises(ValueError, match=f"large.png cannot be read .*{message}") as raised:
        nst.load_image(tmp_path / "large.png")
    size = int(re.search(r"a long side of (\d+) px would fit", str(raised.value))[1])
    assert 2000 < size < 3000
    assert nst.load_image(tmp_path / "large.png", size).shape[-1] == size
    with pytest.raises(ValueError, match=r"3,600 × 2,400 pixels needs about 0\.4 GB"):
        nst.load_image(tmp_path / "large.png", 3600)
    for refused in (
        lambda: nst.resize(small, 3000),
        lambda: nst.resize(large, 300),
        lambda: nst.match_colors(large, small),
        lambda: nst.match_colors(small, large),
    ):
        with pytest.raises(ValueError, match=r"3,000 × 2,000 pixels needs .* fit") as raised:
            refused()
        assert raised.type is ValueError  # its name is what a student reads first


MEASURED = """
import re, sys, torch
import nst_helpers as nst

def held(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

path = sys.argv[1]
picture = torch.rand(1, 3, 2669, 4000)
nst.match_colors(nst.resize(picture[..., :30, :30], 20), picture[..., :30, :30])
works = {  # each takes more than those before, so that the peak is its own
    "DECODE": lambda: nst.load_image(path, 20),
    "RESIZE": lambda: nst.resize(picture, 3900),
    "READ": lambda: nst.load_image(path),
    "MATCH": lambda: nst.match_colors(picture, picture),
}
for name, work in works.items():
    nst._free_memory(torch.device("cpu"))  # gives back what the last one left
    before = held("VmRSS")
    work()
    share = (held("VmHWM") - before) / picture[0, 0].numel()
    print(name, share / getattr(nst, name + "_BYTES"))
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_the_estimates_of_memory_are_ones(root, tmp_path, mode):
    """What reading, resizing and matching take lies between a third of the estimate and all."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads memory where Linux shows it")
    width, height = 4000, 2669
    noisy = np.random.default_rng(0).integers(0, 2**16, (height, width), np.uint16)
    picture = Image.fromarray(noisy) if mode == "I;16" else Image.new(mode, (width, height), 99)
    picture.save(path := tmp_path / "x.png")
    command = [sys.executable, "-c", MEASURED, str(path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    shares = dict(line.split() for line in run.stdout.splitlines())
    assert list(shares) == ["DECODE", "RESIZE", "READ", "MATCH"], run.stderr
    assert all(1 / 3 < float(share) < 1.1 for share in shares.values()), shares


# ------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "webp", "bmp", "tif"])
def test_saved_and_read_again(tmp_path, temple, ending):
    path = nst.save_image(temple, tmp_path / f"new folder/Überraschung 猫.{ending}")
    assert path.parent.name == "new folder"
    assert [path] == list(path.parent.iterdir())
    lossless = ending.lower() in ("png", "bmp", "tif")
    assert (nst.load_image(path) - temple).abs().mean() < (0.003 if lossless else 0.03)


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.", ".png"])
def test_endings_that_no_format_has(tmp_path, temple, name):
    with pytest.raises(ValueError, match=r"must end in \.png, \.jpg or another format"):
        nst.save_image(temple, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "x.jpg",
            {"quality": "best"},
            "Pillow cannot write 96 × 64 px as JPEG {'quality': 'best'}",
        ),
        ("x.png", {"format": "PNG"}, "Pillow cannot write 96 × 64 px as PNG"),
        (None, {}, "path must be the name of a file, not NoneType"),
        (3, {}, "path must be the name of a file, not int"),
    ],
)
def test_saving_that_cannot_work(tmp_path, temple, name, options, message):
    path = tmp_path / name if isinstance(name, str) else name
    with pytest.raises(ValueError, match=message):
        nst.save_image(temple, path, **options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_picture(tmp_path, temple):
    resource = pytest.importorskip("resource", reason="limits as on Linux")
    path = nst.save_image(temple, tmp_path / "x.png")
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*x\.png: File too large") as raised:
            nst.save_image(temple.flip(3), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "not lost" in str(raised.value)
    assert path.read_bytes() == old
    assert [path] == list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written(tmp_path, temple, nobody):
    nst.save_image(temple, tmp_path / "old.png")
    old = (tmp_path / "old.png").read_bytes()
    tmp_path.chmod(0o555)
    for name in ("new.png", "old.png", "new folder/new.png"):
        message = rf"cannot write .*{name}: Permission denied .*the picture is not lost"
        with nobody(), pytest.raises(PermissionError, match=message):
            nst.save_image(temple, tmp_path / name)
    tmp_path.chmod(0o755)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == old


def test_a_folder_in_the_way(tmp_path, temple):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*x\.png: Is a directory"):
        nst.save_image(temple, tmp_path / "x.png")
    (tmp_path / "file").write_text("in the way")
    for name in ("file/x.png", "file/folder/x.png"):
        with pytest.raises(OSError, match=r"x\.png: there is a file where its folder should be"):
            nst.save_image(temple, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.png"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a\0b.png", ValueError, r"cannot write .*: embedded null"),
        ("~\0b.png", ValueError, r"cannot write .*: embedded null"),
        ("a\ud800b.png", (ValueError, OSError), r"cannot write .*a\?b\.png: "),
        ("long" * 100 + ".png", OSError, r"cannot write .*…: File name too long"),
    ],
)
def test_names_that_no_file_can_have(tmp_path, temple, name, kind, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as raised:
        nst.save_image(temple, name)
    assert "choose another folder or name, the picture is not lost" in str(raised.value)
    print(raised.value)  # can be printed
    assert not list(tmp_path.iterdir())
    for load in (nst.load_image, nst.load_vgg19):
        with pytest.raises(FileNotFoundError) as raised:
            load(name)
        print(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder that is in use")
def test_the_working_folder_is_deleted(tmp_path, temple, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError, match=r"x\.png does not exist \(seen from a folder that"):
        nst.load_image("x.png")
    with pytest.raises(FileNotFoundError, match=r"cannot write x\.png: .*seen from a folder that"):
        nst.save_image(temple, "x.png")


def test_a_tilde_is_the_home_folder(tmp_path, temple, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert nst.save_image(temple, "~/new/x.png") == tmp_path / "new/x.png"
    assert not Path("~").exists()  # deleting a folder of that name is a good way to lose a home
    for path in ("~/new/x.png", Path("~/new/x.png")):
        assert (nst.load_image(path) - temple).abs().max() < 0.003
    with pytest.raises(FileNotFoundError, match=r"^~/none\.png does not exist"):
        nst.load_image("~/none.png")


# --------------------------------------------------------------------------------- fuzz

SEEDS = [source for source, _ in RIGHT.values() if isinstance(source, bytes)]
SEEDS += [oriented(6, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")] + [noise("JPEG")]


@st.composite
def damaged_files(draw):
    """A picture file, some bytes of it changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(("set", "cut", "insert", "end")))
        if change == "set":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
        elif change == "cut":
            del data[place : place + draw(st.integers(1, 50))]
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=20))
        else:
            del data[place:]
    return bytes(data)


def picture_or_sentence(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image, sentence = nst.load_image(source), None
        except ValueError as error:
            image, sentence = None, str(error)
    if sentence is not None:
        assert re.search(r"cannot be read as a picture: \w", sentence)
        assert "0x" not in sentence
        assert "\n" not in sentence
    else:
        assert image.shape[:2] == (1, 3)
        assert 0 <= image.min() <= image.max() <= 1


@given(damaged_files())
@settings(max_examples=300, deadline=None)
def test_damaged_files(data):
    picture_or_sentence(data)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes(data):
    picture_or_sentence(data)


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
MODES += ("LAB", "I", "F", "I;16", "I;16B", "I;16L")


@given(
    st.sampled_from(MODES),
    st.integers(1, 40),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
    st.one_of(st.none(), st.integers(1, 60)),
)
@settings(max_examples=200, deadline=None)
def test_any_pixels_in_any_mode(mode, width, height, random, size):
    blank = Image.new(mode, (width, height))
    data = random.randbytes(len(blank.tobytes()))
    image = nst.load_image(Image.frombytes(mode, (width, height), data), size)
    if size is None:
        assert image.shape == (1, 3, height, width)
    else:
        assert max(image.shape[-2:]) == size
    assert 0 <= image.min() <= image.max() <= 1


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_as_a_path(text):
    with pytest.raises((FileNotFoundError, ValueError)) as raised:
        nst.load_image(text + "/no such file")
    str(raised.value).encode()
