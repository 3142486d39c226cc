"""The losses against the paper's sums, written out once more, and what "relative" promises."""

from copy import deepcopy

import pytest
import torch

import nst_helpers as nst


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.rand(1, 4, 5, 6, dtype=torch.float64), torch.rand(1, 4, 5, 6, dtype=torch.float64)


# ---------------------------------------------------------------------- the paper's equations


def test_gram_matrix_element_by_element(features):
    F = features[0]
    G = nst.gram_matrix(F)
    assert G.shape == (1, 4, 4)
    for i in range(4):
        for j in range(4):
            total = sum(F[0, i, y, x] * F[0, j, y, x] for y in range(5) for x in range(6))
            assert G[0, i, j] == pytest.approx(total.item() / (5 * 6))


def test_the_fast_gram_matrix_is_the_same_and_so_is_its_gradient(features):
    F, A = features[0], nst.gram_matrix(features[1])[0]
    results = []
    for gram in (lambda F: nst.gram_matrix(F)[0], nst.fast_gram):
        leaf = F.clone(memory_format=torch.channels_last).requires_grad_()
        loss = (gram(leaf) - A).square().mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results)
    # what makes it fast: the layout of a convolution's own gradient
    assert results[1][1].is_contiguous(memory_format=torch.channels_last)


def test_gram_matrix_takes_any_leading_dimensions(features):
    F = torch.cat(features)
    assert torch.equal(nst.gram_matrix(F)[1], nst.gram_matrix(F[1]))


def test_content_loss_is_eq_1_over_the_number_of_elements(features):
    F, P = features
    expected = 0.5 * sum((f - p) ** 2 for f, p in zip(F.flatten(), P.flatten(), strict=True))
    assert nst.content_loss(F, P).item() == pytest.approx(expected.item() / F.numel())


def test_style_loss_is_eq_4_exactly(features):
    F, S = features
    N, M = 4, 5 * 6
    G, A = (X.flatten(2) @ X.flatten(2).mT for X in (F, S))  # eq 3, not normalised
    expected = ((G - A) ** 2).sum() / (4 * N**2 * M**2)
    assert nst.style_loss(F, nst.gram_matrix(S)).item() == pytest.approx(expected.item())


def test_tv_loss():
    image = torch.zeros(1, 1, 2, 3)
    assert nst.tv_loss(image) == 0
    image[0, 0, 0, 0] = 1  # one of three steps down and one of four steps to the right
    assert nst.tv_loss(image).item() == pytest.approx(1 / 3 + 1 / 4)


# ------------------------------------------------------------------------------- the weights


def test_default_weights():
    """w_l = 1/5 as in the paper, which has no prior."""
    weights = nst.Weights()
    assert weights.layers == dict.fromkeys(nst.STYLE_LAYERS, 1 / 5)
    assert weights.tv == 0


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_is_named(wrong):
    for name in ("content", "tv"):
        with pytest.raises(ValueError, match=rf"finite and not negative: {name} in Weights\("):
            nst.Weights(**{name: wrong}).factors()
    with pytest.raises(ValueError, match="finite and not negative: relu4_1"):
        nst.Weights(layers={"relu4_1": wrong}).factors()
    with pytest.raises(AttributeError):  # a misspelt name
        nst.Weights().stlye = 3.0


# ----------------------------------------------------------------- the picture and its frame


def mirrored(image):
    """Continue `image` by 16 pixels, and then on to a multiple of 16, with its mirror image."""
    rows, columns = (
        [n - 1 - abs(n - 1 - abs(i)) for i in range(-16, 16 * (-(-n // 16) + 1))]
        for n in image.shape[-2:]
    )
    return image[..., rows, :][..., columns]


def plain_features(vgg, image, layers):
    """Features in float64, layer by layer, with the preprocessing of Caffe written out."""
    x = mirrored(image.double())[:, [2, 1, 0]] * 255
    x = x - torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(3, 1, 1)
    outputs = {}
    for name, layer in zip(nst.LAYERS, vgg.features, strict=True):
        x = layer(x)
        if name in layers:
            stride = 2 ** (int(name[4]) - 1)
            top = left = 16 // stride
            bottom, right = (-(-(16 + side) // stride) for side in image.shape[-2:])
            outputs[name] = x[..., top:bottom, left:right]
    return outputs


def plain_losses(vgg, image, content, style, weights, content_layers):
    """All of `relative_losses` once more, from the paper's sums in float64."""
    layers = [*content_layers, *weights.layers]
    x, p, a = (plain_features(vgg, picture, layers) for picture in (image, content, style))
    losses = {"content": 0.0, "style": 0.0}
    for name in content_layers:
        part = (x[name] - p[name]).square().sum() / p[name].square().sum()  # ½ and 1/n cancel
        losses["content"] += part.item() / len(content_layers)
    for name, w in weights.layers.items():
        F, S = x[name][0].flatten(1), a[name][0].flatten(1)
        G, A = F @ F.T / F.shape[1], S @ S.T / S.shape[1]
        losses[name] = ((G - A).square().sum() / A.square().sum()).item()
        losses["style"] += w * losses[name]
    h, w = image.shape[-2:]
    down = sum((image[..., i + 1, :] - image[..., i, :]).square().sum() for i in range(h - 1))
    right = sum((image[..., i + 1] - image[..., i]).square().sum() for i in range(w - 1))
    losses["tv"] = (down / (3 * (h - 1) * w) + right / (3 * h * (w - 1))).item()
    return losses


@pytest.mark.parametrize(("pooling", "size"), [("max", 64), ("avg", 75)])
def test_relative_losses_recomputed(vgg, avg_vgg, picture, pooling, size):
    """The second pair of sides is not a multiple of 16; the two pictures differ in shape."""
    network = vgg if pooling == "max" else avg_vgg
    content, style = picture("temple", size), picture("poppies", 80)
    image = nst.match_colors(picture("temple", size).flip(3), style)
    weights = nst.Weights(layers={"relu1_1": 0.1, "relu3_1": 0.7, "relu5_1": 0.2})
    layers = ("relu2_2", "relu4_2")
    found = nst.relative_losses(network, content, style, weights, layers)(image)
    exact = deepcopy(network).double()
    expected = plain_losses(exact, image, content, style, weights, layers)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("size", [(64, 96), (81, 121), (85, 128), (127, 95), (20, 33)])
def test_the_frame_leaves_a_cell_for_each_pixel(avg_vgg, size):
    """As many features as without a frame, of the same places, and all of the picture is seen."""
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    framed = nst.framed_features(avg_vgg, image, nst.STYLE_LAYERS)
    bare = avg_vgg(image, nst.STYLE_LAYERS)
    for name in nst.STYLE_LAYERS:
        assert framed[name].shape == bare[name].shape
    assert torch.allclose(
        framed["relu2_1"][..., 4:-4, 4:-4], bare["relu2_1"][..., 4:-4, 4:-4], atol=1e-2
    )


def test_no_gradient_comes_through_the_frame(avg_vgg):
    """A mirrored pixel is no second chance to act: what is near the border counts once."""
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = [
        torch.autograd.grad(features(image, ["conv1_1"])["conv1_1"].sum(), image)[0]
        for features in (avg_vgg, lambda *inputs: nst.framed_features(avg_vgg, *inputs))
    ]
    torch.testing.assert_close(*gradients)


# ------------------------------------------------------------------- what "relative" promises


def test_a_picture_without_features_has_losses_of_one(picture):
    vgg = nst.load_vgg19(pooling="avg")
    content, style = picture("temple", 64), picture("poppies", 64)
    losses_of = nst.relative_losses(vgg, content, style, nst.Weights())
    for layer in vgg.features:
        if isinstance(layer, torch.nn.Conv2d):  # from now on F = 0, whatever the picture
            layer.weight.zero_()
            layer.bias.zero_()
    losses = losses_of(content)
    for name in ("content", "style", *nst.STYLE_LAYERS):
        assert losses[name].item() == pytest.approx(1.0, rel=1e-5), name


def test_losses_are_zero_at_their_target(avg_vgg, picture):
    content, style = picture("temple", 64), picture("poppies", 64)
    losses_of = nst.relative_losses(avg_vgg, content, style, nst.Weights())
    photograph, painting = losses_of(content), losses_of(style)
    assert photograph["content"] == 0
    assert photograph["style"] > 0.1
    assert painting["content"] > 0.1
    for name in ("style", *nst.STYLE_LAYERS):
        assert painting[name] < 1e-9, name
