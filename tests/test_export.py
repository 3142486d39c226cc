"""Pages need no network and show no dead widget; handouts hold no solution and no output."""

import importlib.util
import re

import nbformat
import pytest


@pytest.fixture
def export(root):
    spec = importlib.util.spec_from_file_location("export", root / "teaching/export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_need_no_network(export, tmp_path):
    export.main("html", tmp_path)
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == len(list((export.ROOT / "notebooks").glob("*.ipynb")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'(?:src|<link[^>]* href)="https?://[^"]*', text), page.name
        assert not re.search(
            r"\$[A-Za-z\\\\][^$<\n]*\$",
            re.sub(r"<(code|pre|script).*?</\1>", "", text, flags=re.DOTALL),
        )
        assert "Box(children=" not in text
        assert '.ipynb"' not in text
    assert (tmp_path / "03_losses.html").read_text(encoding="utf-8").count("<math") > 50


def test_handouts_have_no_solution_and_no_output(export, tmp_path):
    export.main("handout", tmp_path)
    for path in (export.ROOT / "notebooks").glob("*.ipynb"):
        whole = nbformat.read(path, as_version=4)
        handout = nbformat.read(tmp_path / path.name, as_version=4)
        solutions = [x for x in whole.cells if "solution" in x.metadata.get("tags", [])]
        assert len(handout.cells) == len(whole.cells) - len(solutions) == len(whole.cells) - 3
        text = "\n".join(cell.source for cell in handout.cells)
        for solution in solutions:
            (code,) = re.findall(r"```python\n(.*?)```", solution.source, re.DOTALL)
            assert code.strip() not in text
        assert all(not cell.get("outputs") for cell in handout.cells)
