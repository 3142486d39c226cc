"""The losses against the paper's sums, written out once more and element by element."""

import pytest
import torch

import nst_helpers as nst


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.rand(1, 4, 5, 6, dtype=torch.float64), torch.rand(1, 4, 5, 6, dtype=torch.float64)


def test_gram_matrix_element_by_element(features):
    F = features[0]
    G = nst.gram_matrix(F)
    assert G.shape == (1, 4, 4)
    for i in range(4):
        for j in range(4):
            expected = sum(F[0, i, y, x] * F[0, j, y, x] for y in range(5) for x in range(6)) / (
                5 * 6
            )
            assert G[0, i, j] == pytest.approx(expected.item())


def test_gram_matrix_takes_any_leading_dimensions(features):
    F = torch.cat(features)
    assert torch.equal(nst.gram_matrix(F)[1], nst.gram_matrix(F[1]))


def test_gram_matrix_does_not_depend_on_the_size(features):
    F = features[0]
    assert torch.allclose(nst.gram_matrix(F.repeat(1, 1, 2, 3)), nst.gram_matrix(F))


def test_content_loss_is_eq_1_over_the_number_of_elements(features):
    F, P = features
    assert nst.content_loss(F, P).item() == pytest.approx(
        (0.5 * ((F - P) ** 2).sum() / F.numel()).item()
    )


def test_style_loss_is_eq_4_exactly(features):
    F, S = features
    N, M = 4, 5 * 6
    G, A = (X.flatten(2) @ X.flatten(2).mT for X in (F, S))  # eq 3, not normalised
    expected = ((G - A) ** 2).sum() / (4 * N**2 * M**2)
    assert nst.style_loss(F, nst.gram_matrix(S)).item() == pytest.approx(expected.item())


def test_losses_vanish_only_for_equal_features(features):
    F, S = features
    assert nst.content_loss(F, F) == 0
    assert nst.style_loss(F, nst.gram_matrix(F)) == 0
    assert nst.content_loss(F, S) > 0
    assert nst.style_loss(F, nst.gram_matrix(S)) > 0


def test_gradients_are_eqs_2_and_6(features):
    """On ReLU outputs; with our means, eq 2 is divided by the number of elements."""
    F, S = features
    conv = (F - 0.5).requires_grad_()
    relu = conv.relu()
    (gradient,) = torch.autograd.grad(nst.content_loss(relu, S), conv)
    expected = torch.where(conv > 0, (relu - S) / relu.numel(), 0)
    assert torch.allclose(gradient, expected)
    relu = conv.relu()
    N, M = 4, 5 * 6
    (gradient,) = torch.autograd.grad(nst.style_loss(relu, nst.gram_matrix(S)), conv)
    flat = relu.flatten(2)
    difference = flat @ flat.mT - S.flatten(2) @ S.flatten(2).mT
    expected = (flat.mT @ difference).mT / (N**2 * M**2)
    expected = torch.where(conv > 0, expected.view_as(conv), 0)
    assert torch.allclose(gradient, expected)


def test_tv_loss(features):
    image = torch.zeros(1, 1, 2, 3)
    assert nst.tv_loss(image) == 0
    image[0, 0, 0, 0] = 1  # one of three steps down and one of four steps to the right
    assert nst.tv_loss(image).item() == pytest.approx(1 / 3 + 1 / 4)
