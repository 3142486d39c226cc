"""Measure how much memory a pixel takes: the figures that refuse what would not fit.

usage: python benchmarks/memory.py [SIZE], the side of a square in pixels, by default 512. Prints
the most bytes for each pixel that a process takes, beside the estimates in nst_helpers; work
without the network is measured at 2048 pixels or more, loading VGG-19 in bytes. Linux only.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nst_helpers as nst

KINDS = {
    "a pass": nst.PASS_BYTES + nst._kept_bytes(nst.STYLE_LAYERS),
    "a pass and the way back": nst.STEP_BYTES,
    "painting with adam": nst.PAINT_BYTES,
    "painting with lbfgs": nst.PAINT_BYTES + nst.LBFGS_BYTES,
}
PLAIN = {  # without the network
    "reading": nst.READ_BYTES,
    "reading, made smaller": nst.DECODE_BYTES,
    "resizing": nst.RESIZE_BYTES,
    "matching colours": nst.MATCH_BYTES,
}


def held(key: str) -> int:
    """Return a figure of this process: VmRSS is what it holds now, VmHWM the most it did, bytes."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def work(kind: str, size: int) -> float:
    """Do what `kind` says, in this process; return the bytes it took for each pixel."""
    vgg = nst.load_vgg19(pooling="avg")
    photo, painting = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    vgg(photo[..., :32, :32], nst.STYLE_LAYERS)  # what is loaded late is loaded now
    before = held("VmRSS")
    if kind.startswith("painting"):
        method = kind.split()[-1]
        steps = nst.stylize(photo, painting, vgg=vgg, sizes=size, steps=25, optimizer=method)
        for _ in steps:
            pass
    else:
        features = vgg(photo.requires_grad_(kind != "a pass"), nst.STYLE_LAYERS)
        if kind != "a pass":
            sum(feature.square().sum() for feature in features.values()).backward()
    return (held("VmHWM") - before) / size**2


def plain_work(kind: str, size: int) -> float:
    """Do what `kind` of PLAIN says, or load VGG-19; return the bytes for each pixel, or in all."""
    photo, file = torch.rand(1, 3, size, size), io.BytesIO()
    deep = np.random.default_rng(0).integers(0, 2**16, (size, size), np.uint16)
    Image.fromarray(deep).save(file, "PNG")  # 16 bits take the most
    nst.match_colors(nst.resize(photo[..., :30, :30], 20), photo[..., :30, :30])
    before = held("VmRSS")
    if kind == "loading VGG-19":
        nst.load_vgg19()
        return held("VmHWM") - before
    if kind.startswith("reading"):
        nst.load_image(file, 20 if "smaller" in kind else None)
    elif kind == "resizing":
        nst.resize(photo, size - 40)
    else:
        nst.match_colors(photo, photo)
    return (held("VmHWM") - before) / size**2


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    print(f"| bytes for each pixel, {size} × {size} px | measured | estimate |\n|---|---|---|")
    loading = {"loading VGG-19": nst.LOAD_BYTES["oxford"]}
    for kind, estimate in (KINDS | PLAIN | loading).items():
        command = [sys.executable, __file__, str(size), kind]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"| {kind} | {float(found):,.0f} | {estimate:,.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        side, kind = int(sys.argv[1]), sys.argv[2]
        print(work(kind, side) if kind in KINDS else plain_work(kind, max(side, 2048)))
    else:
        main()
