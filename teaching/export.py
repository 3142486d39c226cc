"""Write the notebooks as pages to read (`make html`) or as handouts to fill in (`make handout`).

usage: python teaching/export.py html|handout. The folder html/ or handout/ is beside notebooks/, so
that links to pictures work. Pages work offline: their formulas are MathML, which browsers render.
Handouts have neither outputs nor solutions.
"""

import re
import sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter, NotebookExporter
from nbconvert.preprocessors import ClearOutputPreprocessor, Preprocessor, TagRemovePreprocessor

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
CODE = r"(```.*?```|`[^`\n]*`)"  # in code, a dollar sign does not begin a formula
FORMULA = r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$"


def to_mathml(found: re.Match) -> str:
    kind = "block" if found["block"] else "inline"
    return convert(found[kind].strip(), display=kind)


class Page(Preprocessor):
    """Turns formulas into MathML and removes widgets, which need a running kernel."""

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            parts = re.split(CODE, cell.source, flags=re.DOTALL)
            parts[::2] = [re.sub(FORMULA, to_mathml, x, flags=re.DOTALL) for x in parts[::2]]
            cell.source = "".join(parts)
        if cell.cell_type == "code":
            cell.outputs = [x for x in cell.outputs if WIDGET not in x.get("data", {})]
        return cell, resources


def exporter(kind: str) -> HTMLExporter | NotebookExporter:
    if kind == "html":
        offline = dict.fromkeys(("mathjax_url", "require_js_url", "mermaid_js_url"), "")
        return HTMLExporter(preprocessors=[Page], **offline)
    without = TagRemovePreprocessor(remove_cell_tags={"solution"})
    return NotebookExporter(preprocessors=[ClearOutputPreprocessor(), without])


def main(kind: str, folder: Path) -> None:
    write = exporter(kind)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, _ = write.from_notebook_node(nbformat.read(path, as_version=4))
        if kind == "html":  # links between the notebooks
            text = re.sub(r'(href="\d\d_\w+)\.ipynb"', r'\1.html"', text)
        (folder / path.name).with_suffix(write.file_extension).write_text(text, encoding="utf-8")
    print(f"{folder}: {len(list(folder.glob(f'*{write.file_extension}')))} files")


if __name__ == "__main__":
    main(sys.argv[1], ROOT / sys.argv[1])
