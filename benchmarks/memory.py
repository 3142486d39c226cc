"""Peak memory and seconds of one painting, each size in a process of its own.

usage: python benchmarks/memory.py [SIZE ...], by default 256 and 512. The memory is the largest
resident set of the whole process: Python, PyTorch, the network, and the painting.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAINT = """
import json, resource, sys, time
import nst_helpers as nst

root, size = sys.argv[1], int(sys.argv[2])
start = time.perf_counter()
content = nst.load_image(root + "/images/content/temple.jpg", size)
style = nst.load_image(root + "/images/style/starry_night.jpg", size)
sizes = [s for s in (128, 256, 512, 1024) if s < size] + [size]
steps = [100, *[60] * (len(sizes) - 1)]
times = []
for step in nst.stylize(content, style, sizes=sizes, steps=steps):
    times.append((step.size, time.perf_counter()))
last = [second for pixels, second in times if pixels == size]
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({
    "size": size,
    "seconds": times[-1][1] - start,
    "seconds per step": (last[-1] - last[0]) / (len(last) - 1),
    "peak": peak,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[256, 512], metavar="SIZE")
    print("| long side | seconds in all | seconds per step | peak memory |")
    print("|---|---|---|---|")
    for size in parser.parse_args().sizes:
        command = [sys.executable, "-c", PAINT, str(ROOT), str(size)]
        run = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(
            f"| {size} px | {run['seconds']:.0f} | {run['seconds per step']:.2f} "
            f"| {run['peak'] / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
