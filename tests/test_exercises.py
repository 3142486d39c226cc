"""Every solution is right, every known mistake gets its own hint, every stub still runs."""

import re
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest

import nst_helpers as nst

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def tagged(path, tag):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def namespace(path, monkeypatch):
    """What the notebook's cells tagged "setup" define."""
    monkeypatch.chdir(path.parent)
    mpl.use("Agg")
    names = {"__name__": "__main__"}
    for cell in tagged(path, "setup"):
        exec(compile(cell.source, cell.id, "exec"), names)
    return names


@pytest.fixture
def calls(monkeypatch):
    """Record the arguments of every nst.check."""
    calls = []

    def check(*args, **options):
        calls.append((args, options))
        return original(*args, **options)

    original = nst.check
    monkeypatch.setattr(nst, "check", check)
    return calls


def test_solutions_and_hints(path, namespace, calls, capsys):
    solutions, checks = tagged(path, "solution"), tagged(path, "check")
    assert len(solutions) == len(checks) == len(tagged(path, "exercise")) == 3
    for solution, check in zip(solutions, checks, strict=True):
        assert solution.source.startswith("<details><summary>Solution</summary>\n\n")
        (code,) = re.findall(r"```python\n(.*?)```", solution.source, re.DOTALL)
        exec(compile(code, solution.id, "exec"), namespace)
        calls.clear()
        capsys.readouterr()
        exec(compile(check.source, check.id, "exec"), namespace)
        text = capsys.readouterr().out
        assert calls, check.id
        assert text.count("✓") == len(calls), text
        for (_, reference, *inputs), options in list(calls):
            hints = options["hints"]
            assert len(set(hints.values())) == len(hints) >= 2
            for wrong, advice in hints.items():
                assert nst.check(wrong, reference, *inputs, hints=hints) is False
                assert advice in capsys.readouterr().out


def test_stubs_say_that_nothing_is_there_yet(path, namespace, capsys):
    for stub, check in zip(tagged(path, "exercise"), tagged(path, "check"), strict=True):
        exec(compile(stub.source, stub.id, "exec"), namespace)
        capsys.readouterr()
        exec(compile(check.source, check.id, "exec"), namespace)
        assert "returns nothing yet" in capsys.readouterr().out
