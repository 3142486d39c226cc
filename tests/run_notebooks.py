"""Run the notebooks from top to bottom in fresh kernels and store their outputs.

usage: python tests/run_notebooks.py [NOTEBOOK ...], by default all in notebooks/. Widget state
and time stamps are left out, so that the files stay small and a re-run changes little; and where a
widget brings a picture of itself, only the picture is stored: without a kernel the widget is dead.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        run(Path(name).resolve())
