"""Run all notebooks again and again, in random order, several at once: `make soak`.

usage: python tests/soak.py [--times 5] [--at-once 2] [--seed N]. Each run is what `make test` does
with a notebook: a fresh kernel, all cells from top to bottom, marked outputs compared. A line says
how each one ended; the exit status is 1 if one failed. Takes hours, so `make test` leaves it out.
"""

import argparse
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(path: Path) -> bool:
    start = time.monotonic()
    # the cells have as much more time as notebooks share the machine
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-cell-timeout=1800", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passed = done.returncode == 0
    minutes = (time.monotonic() - start) / 60
    print(f"{'passed' if passed else 'FAILED'} {path.name} in {minutes:.1f} minutes", flush=True)
    if not passed:
        print(done.stdout + done.stderr, flush=True)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="runs of each notebook")
    parser.add_argument("--at-once", type=int, default=2, help="notebooks that run side by side")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order")
    options = parser.parse_args()
    runs = sorted((ROOT / "notebooks").glob("*.ipynb")) * options.times
    random.Random(options.seed).shuffle(runs)
    print(f"{len(runs)} runs, {options.at_once} at once, --seed {options.seed}", flush=True)
    with ThreadPoolExecutor(options.at_once) as pool:
        passed = list(pool.map(run, runs))
    sys.exit(f"{passed.count(False)} of {len(passed)} runs failed" if not all(passed) else 0)


if __name__ == "__main__":
    main()
