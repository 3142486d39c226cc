"""Compare this project with pastiche and pystiche: speed, memory, and the picture.

pystiche is measured if it can be imported (pip install pystiche). The programs get the same files,
already at the size that is painted, and the same weights. They minimise the same loss, pastiche's:
relu4_2 and the five style layers of the paper, its default factors, zero padding. pastiche and
pystiche start from the content picture; this project paints from coarse to fine. Two
pairs are measured. The tables are written to RESULTS.md, and four lines of them to README.md.
Each run has a process of its own, one after the other. Runs on the GPU if there is one.
Takes about 30 minutes on two cores, 20 without pystiche; leave the machine alone.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from pastiche.pastiche import PasticheArtist

import nst_helpers as nst

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAIRS = (("temple", "starry_night"), ("mountains", "village_street_auvers"))
SIZES = (128, 256, 512, 1024)
FORMATS = ("bfloat16", "float32")
POOLING = "max"  # as by default in pastiche
NOTES = """\
The programs get the same two files and the same weights, and minimise the same loss, that of
pastiche, by L-BFGS. A step is one evaluation of this loss and its gradient, in all of them.
bfloat16 and float32 are the number formats in which this project can compute.

- pystiche is measured if it is installed (`pip install pystiche`). Its release 1.0.1 imports two
  tables that torchvision no longer has; `paint_pystiche.py` supplies them.
- The seconds to a loss end when the picture in memory has that loss. pastiche and pystiche start
  from the photograph at 512 px; this project paints from coarse to fine, first at 128 px.
- pastiche's own code computes the loss of the saved file, for all programs. It is higher than the
  loss in memory, because the file holds whole numbers from 0 to 255. It is far higher where a
  program lets the pixels leave this range and clamps them only once, at the end.
- Memory is that of the whole process at its peak. On a GPU, the first table counts the memory of
  the GPU instead, except for pastiche.
"""
README_LINES = ("seconds per step", "after 200 steps", "peak memory", "loss of the saved file")
PYSTICHE = find_spec("pystiche") is not None


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


def pastiche(folder: Path, size: int, steps: int, pooling: str) -> dict:
    """Run pastiche's command line; its loss after each step comes with the seconds."""
    command = [sys.executable, "-m", "pastiche", "--pooling", pooling, "--num-steps", steps]
    command += ["--content", folder / f"content_{size}.png", "--size", size]
    command += ["--styles", folder / f"style_{size}.png", "--style-size", size]
    command += ["--seed", 0, "--info-step", 1, "--output", folder / "painted.png"]
    command += ["--device", nst.best_device().type]
    output, memory = run(command)
    rows = [line.split() for line in output.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0].isdigit()]
    start = float(rows[0][1])
    seconds = [float(row[1]) - start for row in rows]
    found = {"start": start, "seconds": seconds, "sizes": [size] * len(rows), "memory": memory}
    return {**found, "losses": [float(row[2]) for row in rows]}


def paint(script: str, folder: Path, **options) -> dict:
    """Run one of the scripts beside this one; the picture stays in `folder`."""
    command = [sys.executable, "-W", "ignore", HERE / script, folder, json.dumps(options)]
    output, memory = run(command)
    return {**json.loads(output), "memory": memory}


def saved_loss(folder: Path) -> float:
    """Return the loss of the file painted.png at 512 px, as pastiche's own code computes it."""
    content, style = str(folder / "content_512.png"), str(folder / "style_512.png")
    options = {"pooling": POOLING, "size": 512, "style_size": 512, "device": "cpu"}
    return PasticheArtist(content, [style], init=str(folder / "painted.png"), **options).loss


def table(*rows) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def per_step(found: dict, size: int) -> float:
    """Return the seconds of a step at `size`, the first two left out."""
    seconds = [s for s, x in zip(found["seconds"], found["sizes"], strict=True) if x == size][2:]
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def compare(folder: Path, formats) -> str:
    """Time the programs to the losses that pastiche has after 100 and 200 steps at 512 px."""
    found = {"pastiche": pastiche(folder, 512, 200, POOLING)}
    seconds, losses = found["pastiche"]["seconds"], found["pastiche"]["losses"]
    found["pastiche"]["reached"] = seconds[100], seconds[200]
    found["pastiche"]["saved"] = saved_loss(folder)
    plan = {"pooling": POOLING, "goals": [losses[100], losses[200]]}
    if PYSTICHE:
        found["pystiche"] = paint("paint_pystiche.py", folder, size=512, steps=300, **plan)
        found["pystiche"]["saved"] = saved_loss(folder)
    plan |= {"sizes": SIZES[:3], "steps": (40, 25, 300)}
    for dtype in formats:
        mine = paint("paint.py", folder, dtype=dtype, **plan)
        found[f"this project, {dtype}"] = {**mine, "saved": saved_loss(folder)}
    rows = [("", *found)]

    def row(name: str, values, digits: int) -> None:
        rows.append((name, *("–" if x is None else f"{x:,.{digits}f}" for x in values)))

    programs = found.values()
    row("seconds per step at 512 px", [per_step(program, 512) for program in programs], 2)
    for index, steps in enumerate((100, 200)):
        name = f"seconds to a loss of {losses[steps]:,.0f} (pastiche after {steps} steps)"
        row(name, [dict(enumerate(program["reached"])).get(index) for program in programs], 0)
    row("peak memory, GB", [program["memory"] for program in programs], 2)
    row("seconds to start", [program["start"] for program in programs], 1)
    row("loss of the saved file", [program["saved"] for program in programs], 0)
    return table(*rows)


def growth(folder: Path, formats) -> str:
    """Measure a step and the memory of each program at each size."""
    names = ["pastiche", *["pystiche"] * PYSTICHE, *formats]
    rows = [("long side", *(f"{unit}, {name}" for unit in ("s/step", "GB") for name in names))]
    for size in (256, 512, 1024):
        steps = 6 if size > 512 else 12
        found = [pastiche(folder, size, steps, "avg")]
        if PYSTICHE:
            plan = {"size": size, "steps": steps, "pooling": "avg"}
            found.append(paint("paint_pystiche.py", folder, **plan))
        plan = {"sizes": [size], "steps": [steps], "pooling": "avg"}
        found += [paint("paint.py", folder, dtype=dtype, **plan) for dtype in formats]
        cells = [f"{per_step(program, size):.3f}" for program in found]
        cells += [f"{program.get('gpu_memory') or program['memory']:.2f}" for program in found]
        rows.append((f"{size} px", *cells))
    return table(*rows)


def whole(folder: Path, formats) -> str:
    """Measure whole paintings with the defaults."""
    rows = [("long side", "steps at each size", "format", "seconds in all", "peak memory, GB")]
    for steps in ((80, 40, 25), (80, 40, 25, 15)):
        sizes = SIZES[: len(steps)]
        plan = ", ".join(f"{count} at {size} px" for size, count in zip(sizes, steps, strict=True))
        for dtype in formats[: 1 if len(steps) > 3 else 2]:
            mine = paint("paint.py", folder, sizes=sizes, steps=steps, pooling="avg", dtype=dtype)
            seconds = f"{mine['start'] + mine['seconds'][-1]:.0f}"
            rows.append((f"{sizes[-1]} px", plan, dtype, seconds, f"{mine['memory']:.2f}"))
    return table(*rows)


def machine() -> str:
    peers = ["pastiche", *["pystiche"] * PYSTICHE]
    versions = ", ".join([f"PyTorch {torch.__version__}", *(f"{x} {version(x)}" for x in peers)])
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {versions}"
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{torch.get_num_threads()} threads, {name}, {versions}"


def write(text: str) -> None:
    """Write RESULTS.md, and its line on the machine and four lines of a table to README.md."""
    (HERE / "RESULTS.md").write_text(f"# Speed and memory, by `make bench`\n\n{NOTES}\n{text}")
    computer, first = text.split("\n\n")[0], text.split(" pooling:\n\n")[1].splitlines()
    lines = first[:2] + [line for line in first if any(name in line for name in README_LINES)]
    before, rest = (ROOT / "README.md").read_text().split("<!-- bench -->\n")
    after = rest.split("<!-- /bench -->\n")[1]
    block = "\n".join([computer, "", *lines, ""])
    (ROOT / "README.md").write_text(f"{before}<!-- bench -->\n{block}<!-- /bench -->\n{after}")


def main() -> None:
    default = nst.fast_copy(nst.load_vgg19().to(nst.best_device())).features[0].weight.dtype
    formats = FORMATS if default == torch.bfloat16 else ("float32",)
    images = ROOT / "images"
    pairs = [(images / f"content/{c}.jpg", images / f"style/{s}.jpg") for c, s in PAIRS]
    parts = {"machine": f"{machine()}. Default number format here: {formats[0]}.\n"}
    print(parts["machine"], flush=True)
    for index, pair in enumerate(pairs):
        with tempfile.TemporaryDirectory() as name:
            folder, title = Path(name), f"{pair[0].stem} in the style of {pair[1].stem}"
            for kind, path in zip(("content", "style"), pair, strict=True):
                for size in SIZES:
                    picture = nst.load_image(path, size)
                    nst.to_pil(picture).save(folder / f"{kind}_{size}.png")
            torch.save(nst.load_vgg19().features.state_dict(), folder / "vgg19.pth")
            if index == 0:
                parts["growth"], parts["whole"] = growth(folder, formats), whole(folder, formats)
                print(parts["growth"], parts["whole"], sep="\n", flush=True)
            parts[title] = f"{title}, {POOLING} pooling:\n\n"
            parts[title] += compare(folder, formats)
            print(parts[title], flush=True)
    write("\n".join(parts.values()))


if __name__ == "__main__":
    main()
