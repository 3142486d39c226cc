"""Compare this project with the command line of pastiche: speed, memory, and the picture.

usage: python benchmarks/compare.py [--content FILE --style FILE] [--pooling max|avg]

Both programs get the same two files, already at the size that is painted, the same weights, and
minimise the same loss, pastiche's own: relu4_2 and the five style layers of the paper, its default
weights, zero padding. Its 200 steps from the content picture are compared with our coarse to fine.
By default two pairs are measured and the tables are written to RESULTS.md and README.md. Each run
has a process of its own, one after the other. Runs on the GPU if there is one. Takes about 25
minutes on two cores; leave the machine alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pastiche.pastiche import PasticheArtist

import nst_helpers as nst

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAIRS = (("temple", "starry_night"), ("mountains", "village_street_auvers"))
SIZES = (128, 256, 512, 1024)
FORMATS = ("bfloat16", "float32")


def run(command) -> tuple[str, float]:
    """Run a command; return what it printed and the most memory it held, in GB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {command}")
        output.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        return output.read(), usage.ru_maxrss * unit / 1e9


def peer(folder: Path, size: int, steps: int, pooling: str) -> dict:
    """Run pastiche's command line; its pictures after 100 and 200 steps stay in `folder`."""
    command = [sys.executable, "-m", "pastiche", "--pooling", pooling, "--num-steps", steps]
    command += ["--content", folder / f"content_{size}.png", "--size", size]
    command += ["--styles", folder / f"style_{size}.png", "--style-size", size]
    command += ["--seed", 0, "--info-step", 1, "--output", folder / "peer.png"]
    command += ["--workspace", folder, "--workspace-prefix", "peer_", "--workspace-step", 100]
    command += ["--device", nst.best_device().type]
    output, memory = run(command)
    rows = [line.split() for line in output.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0].isdigit()]
    start = float(rows[0][1])
    seconds = [float(row[1]) - start for row in rows]
    losses = [float(row[2]) for row in rows]
    return {"start": start, "seconds": seconds, "losses": losses, "memory": memory}


def ours(folder: Path, **options) -> dict:
    output, memory = run([sys.executable, HERE / "paint.py", folder, json.dumps(options)])
    return {**json.loads(output), "memory": memory}


def saved_loss(folder: Path, picture: str, pooling: str) -> float:
    """Return the loss of a finished picture at 512 px, as pastiche's own code computes it."""
    content, style = str(folder / "content_512.png"), str(folder / "style_512.png")
    options = {"pooling": pooling, "size": 512, "style_size": 512, "device": "cpu"}
    return PasticheArtist(content, [style], init=str(folder / picture), **options).loss


def table(*rows) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def per_step(found: dict, size: int) -> float:
    """Return the seconds of a step at `size`, the first two left out."""
    seconds = [s for s, x in zip(found["seconds"], found["sizes"], strict=True) if x == size][2:]
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def compare(folder: Path, pooling: str, formats) -> str:
    """Time both programs to the losses that pastiche has after 100 and 200 steps at 512 px."""
    theirs = peer(folder, 512, 200, pooling)
    goals = [theirs["losses"][100], theirs["losses"][200]]
    plan = {"sizes": SIZES[:3], "steps": (40, 25, 300), "pooling": pooling, "goals": goals}
    mine = {dtype: ours(folder, dtype=dtype, **plan) for dtype in formats}
    rows = [("", "pastiche", *(f"{dtype}" for dtype in formats), *(f"ratio, {x}" for x in formats))]

    def row(name: str, value: float, values: list[float], digits: int = 1) -> None:
        ratios = [f"{x / value:.2f}" for x in values]
        rows.append((name, *(f"{x:,.{digits}f}" for x in (value, *values)), *ratios))

    row(
        "seconds per step at 512 px",
        (theirs["seconds"][200] - theirs["seconds"][1]) / 199,
        [per_step(found, 512) for found in mine.values()],
        2,
    )
    for index, steps in enumerate((100, 200)):
        name = f"seconds to its loss after {steps} steps, {goals[index]:,.0f}"
        row(name, theirs["seconds"][steps], [found["reached"][index] for found in mine.values()], 0)
    row("peak memory, GB", theirs["memory"], [found["memory"] for found in mine.values()], 2)
    row("seconds to start", theirs["start"], [found["start"] for found in mine.values()])
    last = saved_loss(folder, "ours_512.png", pooling)
    row("loss of the picture that is saved", saved_loss(folder, "peer.png", pooling), [last] * 2, 0)
    return table(*rows)


def growth(folder: Path, formats) -> str:
    """Measure a step and the memory of our defaults at each size, beside pastiche's."""
    heads = [f"{unit}, {name}" for unit in ("s/step", "GB") for name in ("pastiche", *formats)]
    rows = [("long side", *heads)]
    for size in (256, 512, 1024):
        steps = 6 if size > 512 else 12
        theirs = peer(folder, size, steps, "avg")
        plan = {"sizes": [size], "steps": [steps], "pooling": "avg"}
        mine = [ours(folder, dtype=dtype, **plan) for dtype in formats]
        seconds = [(theirs["seconds"][-1] - theirs["seconds"][2]) / (steps - 2)]
        seconds += [per_step(found, size) for found in mine]
        memory = [
            found["gpu_memory"] or found["memory"] for found in (theirs | {"gpu_memory": 0}, *mine)
        ]
        cells = [f"{x:.3f}" for x in seconds] + [f"{x:.2f}" for x in memory]
        rows.append((f"{size} px", *cells))
    return table(*rows)


def whole(folder: Path, formats) -> str:
    """Measure whole paintings with the defaults."""
    rows = [("long side", "steps at each size", "format", "seconds in all", "peak memory, GB")]
    for steps in ((80, 40, 25), (80, 40, 25, 15)):
        sizes = SIZES[: len(steps)]
        plan = ", ".join(f"{count} at {size} px" for size, count in zip(sizes, steps, strict=True))
        for dtype in formats[: 1 if len(steps) > 3 else 2]:
            mine = ours(folder, sizes=sizes, steps=steps, pooling="avg", dtype=dtype)
            seconds = f"{mine['start'] + mine['seconds'][-1]:.0f}"
            rows.append((f"{sizes[-1]} px", plan, dtype, seconds, f"{mine['memory']:.2f}"))
    return table(*rows)


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{torch.get_num_threads()} threads, {name}, PyTorch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--content", type=Path, help="with --style: another pair, only printed")
    parser.add_argument("--style", type=Path)
    parser.add_argument("--pooling", choices=("max", "avg"), default="max", help="pastiche: max")
    options = parser.parse_args()
    default = nst.fast_copy(nst.load_vgg19().to(nst.best_device())).features[0].weight.dtype
    formats = FORMATS if default == torch.bfloat16 else ("float32",)
    images = ROOT / "images"
    pairs = [(images / f"content/{c}.jpg", images / f"style/{s}.jpg") for c, s in PAIRS]
    if options.content and options.style:
        pairs = [(options.content, options.style)]
    parts = {"machine": f"{machine()}. Default number format here: {formats[0]}.\n"}
    print(parts["machine"], flush=True)
    for index, pair in enumerate(pairs):
        with tempfile.TemporaryDirectory() as name:
            folder, title = Path(name), f"{pair[0].stem} in the style of {pair[1].stem}"
            for kind, path in zip(("content", "style"), pair, strict=True):
                for size in SIZES:
                    picture = nst.load_image(path, size)
                    nst.to_pil(picture).save(folder / f"{kind}_{size}.png")
            if index == 0:
                parts["growth"], parts["whole"] = growth(folder, formats), whole(folder, formats)
                print(parts["growth"], parts["whole"], sep="\n", flush=True)
            parts[title] = f"{title}, {options.pooling} pooling:\n\n"
            parts[title] += compare(folder, options.pooling, formats)
            print(parts[title], flush=True)
    if len(pairs) > 1:
        text = "\n".join(parts.values())
        (HERE / "RESULTS.md").write_text(f"# Speed and memory, by `make bench`\n\n{text}")
        before, rest = (ROOT / "README.md").read_text().split("<!-- bench -->\n")[:2]
        after = rest.split("<!-- /bench -->\n")[1]
        pairs = [value for key, value in parts.items() if " in the style of " in key]
        short = "\n".join([parts["machine"], *pairs])
        (ROOT / "README.md").write_text(f"{before}<!-- bench -->\n{short}<!-- /bench -->\n{after}")


if __name__ == "__main__":
    main()
