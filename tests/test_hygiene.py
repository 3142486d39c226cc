"""The conventions of CONTRIBUTING.md: notebooks, modules, environments, links, pictures."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("nst_*.py"))}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "images").glob("*.md"))]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def has_picture(output):
    return any(kind.startswith("image/") for kind in output.get("data", {}))


# ------------------------------------------------------------------------- the notebooks


@each_notebook
def test_stored_outputs_are_fresh(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_every_picture_has_a_description(path):
    for cell in code_cells(path):
        for output in filter(has_picture, cell.outputs):
            assert not any("widget" in kind for kind in output.data), "the widget hides its picture"
            assert len(output.data["text/plain"]) > 10, cell.id
            assert "<Figure" not in output.data["text/plain"], cell.id


@each_notebook
def test_nothing_of_one_machine_is_stored(path):
    notebook, text = read(path), path.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not {"execution", "collapsed"} & set(cell.metadata)
    assert not re.search(r"/(?:home|root|tmp|work|Users|var|usr|opt)/\w|[A-Z]:\\\\", text)


@each_notebook
def test_cells_are_short_and_explained(path):
    cells = [cell for cell in read(path).cells if cell.source.strip()]
    lengths = sorted(
        sum(bool(line.strip()) for line in cell.source.splitlines())
        for cell in cells
        if cell.cell_type == "code"
    )
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[-1] <= 30
    assert "cccc" not in "".join(cell.cell_type[0] for cell in cells)
    for index, cell in enumerate(cells):
        if any(map(has_picture, cell.get("outputs", []))):
            following = [after.cell_type for after in cells[index + 1 : index + 3]]
            assert "markdown" in following, f"nothing is said about the figure of {cell.id}"


@each_notebook
def test_anatomy(path):
    assert re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name)
    first, *rest = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert re.match(r"# \w+ ", first)
    for part in ("**What you'll do:**", "**What you'll learn**", "**What you'll need:**"):
        assert part in first
    text = "\n".join(rest)
    assert text.count("**Predict.**") >= 2
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-3:] == ["Recap", "Exercises", "Next"]


@each_notebook
def test_imports_come_first_and_nothing_hides(path):
    first, *rest = code_cells(path)
    assert "import nst_helpers as nst" in first.source
    for cell in rest:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.Import, ast.ImportFrom, ast.Global)), cell.id
    source = "\n".join(cell.source for cell in [first, *rest])
    for forbidden in ("sys.path", "import *", "os.environ", "filterwarnings", "chdir"):
        assert forbidden not in source


def definitions(source):
    return {x.name: x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)}


def body(function):
    """The function as code alone: its docstring, comments and annotations do not count."""
    function = ast.parse(ast.unparse(function)).body[0]
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.unparse(function)


@each_notebook
def test_taught_functions_are_those_of_the_modules(path):
    taught = {}
    for source in MODULES.values():
        taught |= definitions(source)
    for cell in code_cells(path):
        for name, function in definitions(cell.source).items():
            if name in taught and not name.startswith("_"):
                assert body(function) == body(taught[name]), f"{name} differs from the module's"


# --------------------------------------------------------------------------- the modules


def test_the_modules_can_be_read_in_one_sitting():
    assert len(MODULES["nst_helpers.py"].splitlines()) <= 550
    assert len(MODULES["nst_studio.py"].splitlines()) <= 450
    nodes = list(ast.walk(ast.parse(MODULES["nst_helpers.py"])))
    assert sum(isinstance(node, ast.Raise) for node in nodes) <= 25
    for source in MODULES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, node.name


# ---------------------------------------------------------------------- the environments


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def requirements(project):
    extra = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    return [Requirement(entry) for entry in [*project["dependencies"], *extra]]


def test_environment_yml_is_in_step_with_pyproject(project, requirements):
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (python,) = (entry for entry in conda if entry.startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))
    found = {re.sub(r"\s", "", entry) for entry in [*conda, *pip]} - {python, "pip", "-e."}
    assert found == {f"{names.get(r.name, r.name)}{r.specifier}" for r in requirements}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (count,) = re.findall(r"^export GOMP_SPINCOUNT \?= (\d+)$", makefile, re.MULTILINE)
    assert environment["variables"] == {"GOMP_SPINCOUNT": count}


def test_every_import_is_declared(requirements):
    files = [
        path
        for folder in (".", "tests", "benchmarks", "images")
        for path in ROOT.glob(f"{folder}/*.py")
    ]
    sources = [path.read_text(encoding="utf-8") for path in files]
    sources += [cell.source for path in NOTEBOOKS for cell in code_cells(path)]
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(node.module.split(".")[0])
    modules = {"pillow": "PIL", "ipython": "IPython", "pyyaml": "yaml"}
    declared = {modules.get(requirement.name, requirement.name) for requirement in requirements}
    declared |= {path.stem for path in files} | {"tomli"}  # tomli comes with pytest on Python 3.10
    assert imported - declared - set(sys.stdlib_module_names) <= {"tomllib"}  # new in 3.11


# ------------------------------------------------------------------- pages and pictures


def links(text):
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    for link in links(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, part = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if part and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(anchor, headings), link


def test_every_picture_has_its_source():
    table = (ROOT / "images/SOURCES.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (\S+\.\w+) \| (\d+)×(\d+) \|", table, re.MULTILINE)
    others = ("", ".md", ".json", ".py", ".pyc")
    files = [path for path in (ROOT / "images").rglob("*") if path.suffix not in others]
    painted = [path for path in files if path.with_suffix(".json").exists()]  # these name both
    assert all(path.stat().st_size <= 600_000 for path in painted)
    files = [path for path in files if path not in painted]
    present = {path.relative_to(ROOT / "images").as_posix(): path for path in files}
    assert sorted(name for name, _, _ in named) == sorted(present)
    for name, width, height in named:
        with Image.open(present[name]) as picture:
            assert picture.size == (int(width), int(height)), name
        limit = 1_500_000 if name == "readme.webp" else 300_000  # a film
        assert present[name].stat().st_size <= limit, name


def test_readme_shows_the_measured_table():
    """The README has the line on the machine and four lines of a table, as RESULTS.md has them."""
    measured = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8").splitlines()
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- bench -->\n")[1]
    machine, _, header, *lines = shown.split("<!-- /bench -->")[0].splitlines()
    assert machine in measured
    table = measured[measured.index(header) + 1 :]
    table = table[: table.index("")]  # the first with this header
    assert lines == [line for line in table if line in lines]
    assert len(lines) == 1 + 4  # the rule below the header


def test_readme_names_every_notebook_and_hangs_the_whole_gallery():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipes = json.loads((ROOT / "images/recipes.json").read_text(encoding="utf-8"))
    for name in recipes:
        picture = re.escape(f"(images/gallery/{name}.jpg)")
        assert re.search(rf"\[!\[[^\]]{{40,}}\]{picture}\]{picture}", readme), name
    for path in NOTEBOOKS:
        assert f"](notebooks/{path.name})" in readme
