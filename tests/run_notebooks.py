"""Run the notebooks from top to bottom in fresh kernels and store their outputs.

usage: python tests/run_notebooks.py [NOTEBOOK ...], by default all in notebooks/. Widget state and
time stamps are not stored, so that the files stay small and a re-run changes little. If a widget
comes with a picture, only the picture is stored, since a widget does nothing without a kernel.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def peak_memory(process: int) -> str:
    """Return the peak memory of another process, which only Linux reports."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return f"{int(found[1]) / 1e6:.1f} GB" if found else "memory unknown"


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with client.setup_kernel():
        start = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        seconds, memory = time.perf_counter() - start, peak_memory(client.km.provisioner.pid)
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)
    print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} kB, {memory}")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        run(Path(name).resolve())
