"""`check` explains mistakes; it never raises because of a student's function.

test_exercises.py has the solutions, stubs and hints of all exercises.
"""

import pytest
import torch

import nst_helpers as nst


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.rand(2, 3, 3)


def check(capsys, yours, *inputs, reference=nst.gram_matrix):
    result = nst.check(yours, reference, *inputs)
    return result, capsys.readouterr().out


def test_right(capsys, features):
    def my_gram(F):
        return torch.einsum("ihw,jhw->ij", F, F) / 9

    assert check(capsys, my_gram, features) == (True, "✓ my_gram is right\n")


@pytest.mark.parametrize(
    ("yours", "message"),
    [
        (lambda F: None, "returns nothing yet"),
        (lambda F: ..., "returns nothing yet"),
        (lambda F: F / 0, "its shape is (2, 3, 3), not (2, 2)"),
        (lambda F: 1.5, "returns a float, not a Tensor"),
        (lambda F: nst.gram_matrix(F) * 1.01, "not close"),
        (lambda F: nst.gram_matrix(F).requires_grad_(), "its requires_grad is True, not False"),
        (lambda F: F @ "x", "stops with TypeError"),
        (lambda: 0, "stops with TypeError"),
        (lambda F: nst.gram_matrix(F) * torch.nan, "not close"),
    ],
)
def test_mistakes_are_described(capsys, features, yours, message):
    result, text = check(capsys, yours, features)
    assert result is False
    assert text.startswith("✗ <lambda>: ")
    assert message in text


def test_inputs_are_not_spoiled(capsys, features):
    original = features.clone()
    check(capsys, lambda F: F.zero_(), features)
    assert torch.equal(features, original)


def test_numbers_and_containers(capsys):
    for right, wrong in ((2.0, 2.1), ([1, 2], [1, 3]), ({"a": 1.0}, {"a": 2.0}), ((1,), (1, 2))):
        assert check(capsys, lambda x=right: x, reference=lambda x=right: x)[0] is True
        assert check(capsys, lambda x=wrong: x, reference=lambda x=right: x)[0] is False


def test_tolerance_is_relative_to_the_size(capsys):
    big = torch.tensor([1e8, 0.0])
    assert check(capsys, lambda: big + 1, reference=lambda: big)[0] is True
    assert check(capsys, lambda: big * 1.001, reference=lambda: big)[0] is False
