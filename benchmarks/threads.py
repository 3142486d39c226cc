"""Measure what waiting threads cost: one painting alone, and two at once, by GOMP_SPINCOUNT.

usage: python benchmarks/threads.py. Prints seconds a step at 64, 128 and 256 px (the median) with
PyTorch's default, with the Makefile's 2000, and with none. Linux only: its OpenMP reads this.
"""

import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nst_helpers as nst

ROOT = Path(__file__).resolve().parents[1]
SIZES, STEPS = (64, 128, 256), (40, 25, 12)


def paint() -> None:
    photo = nst.load_image(ROOT / "images/content/temple.jpg", 512)
    painting = nst.load_image(ROOT / "images/style/starry_night.jpg", 512)
    vgg = nst.load_vgg19(pooling="avg")
    for size, steps in zip(SIZES, STEPS, strict=True):
        times = []
        for _ in nst.stylize(photo, painting, vgg=vgg, sizes=size, steps=steps, tolerance=0):
            times.append(time.perf_counter())
        gaps = [later - earlier for earlier, later in pairwise(times[2:])]
        print(statistics.median(gaps))


def main() -> None:
    print("| GOMP_SPINCOUNT | at once | 64 px | 128 px | 256 px |\n|---|---|---|---|---|")
    for count in ("", "2000", "0"):
        environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
        environment |= {"GOMP_SPINCOUNT": count} if count else {}
        for at_once in (1, 2):
            command = [sys.executable, __file__, "paint"]
            pipes = {"stdout": subprocess.PIPE, "text": True, "env": environment}
            processes = [subprocess.Popen(command, **pipes) for _ in range(at_once)]
            found = [process.communicate()[0].split() for process in processes]
            slower = [max(map(float, times)) for times in zip(*found, strict=True)]
            cells = " | ".join(f"{seconds:.3f}" for seconds in slower)
            print(f"| {count or 'default'} | {at_once} | {cells} |", flush=True)


if __name__ == "__main__":
    paint() if "paint" in sys.argv else main()
