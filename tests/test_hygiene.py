"""What a reader meets: fresh outputs, one environment, links that lead somewhere."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

import nst_helpers as nst

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "images").glob("*.md"))]
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",
}

IMPORT_NAMES = {"pillow": "PIL", "ipython": "IPython", "pyyaml": "yaml"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name)


@each_notebook
def test_outputs_are_fresh(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id


@each_notebook
def test_metadata_is_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info.name == "python"
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        assert "collapsed" not in cell.metadata


@each_notebook
def test_files_are_small(path):
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
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
    kinds = "".join(cell.cell_type[0] for cell in cells)
    assert "cccc" not in kinds
    for index, cell in enumerate(cells):
        if any(
            "image/" in kind
            for output in cell.get("outputs", [])
            for kind in output.get("data", {})
        ):
            following = [after.cell_type for after in cells[index + 1 : index + 3]]
            assert "markdown" in following, f"nothing is said about the figure of {cell.id}"


@each_notebook
def test_anatomy(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.match(r"# \w+ ", notebook.cells[0].source)
    for part in ("**What you'll do:**", "**What you'll learn**", "**What you'll need:**"):
        assert part in notebook.cells[0].source
    assert text.count("**Predict.**") >= 2
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[-3:] == ["Recap", "Exercises", "Next"]


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


@each_notebook
def test_every_picture_has_a_description(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            if any(kind.startswith("image/") for kind in data):
                assert not any("widget" in kind for kind in data), "the widget hides its picture"
                assert len(data["text/plain"]) > 10, cell.id
                assert "<Figure" not in data["text/plain"], cell.id


def definitions(tree):
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


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
def test_taught_functions_are_those_of_the_module(path):
    module = definitions(ast.parse(Path(nst.__file__).read_text(encoding="utf-8")))
    for cell in code_cells(path):
        for name, function in definitions(ast.parse(cell.source)).items():
            if name in module and not name.startswith("_"):
                assert body(function) == body(module[name]), f"{name} differs from the module's"


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
    named = re.findall(r"^\| (\S+\.\w+) \|", table, re.MULTILINE)
    present = [
        str(path.relative_to(ROOT / "images"))
        for path in (ROOT / "images").rglob("*")
        if path.is_file()
        and path.suffix not in (".md", ".json", ".py")
        and "__pycache__" not in path.parts
    ]
    assert sorted(named) == sorted(present)
    for name in named:
        with Image.open(ROOT / "images" / name) as picture:
            width, height = picture.size
        assert f"| {name} | {width}×{height} |" in table
        assert (ROOT / "images" / name).stat().st_size <= 300_000


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_environment_yml_is_in_step_with_pyproject(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert set(environment) <= {"name", "channels", "dependencies", "prefix", "variables"}
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-e ." in pip
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (python,) = (entry for entry in conda if entry.startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))
    conda = [entry for entry in conda if entry != "pip" and not entry.startswith("python=")]
    found = sorted(re.sub(r"\s", "", entry) for entry in [*conda, *pip] if entry != "-e .")
    extra = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    wanted = [Requirement(entry) for entry in [*project["dependencies"], *extra]]
    assert found == sorted(f"{CONDA_NAMES.get(r.name, r.name)}{r.specifier}" for r in wanted)


def test_threads_wait_alike_with_make_and_conda():
    (count,) = re.findall(
        r"^export GOMP_SPINCOUNT \?= (\d+)$",
        (ROOT / "Makefile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["variables"] == {"GOMP_SPINCOUNT": count}


def test_every_import_is_declared(project):
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")]
    for folder in ("tests", "benchmarks", "images"):
        sources += [path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py")]
    sources += [cell.source for path in NOTEBOOKS for cell in code_cells(path)]
    imported = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    extra = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    names = {Requirement(entry).name for entry in [*project["dependencies"], *extra]}
    modules = {IMPORT_NAMES.get(name, name) for name in names}
    modules |= {path.stem for path in ROOT.glob("*.py")}
    modules |= {"tomllib", "tomli"}  # the latter, for Python 3.10, comes with pytest
    assert imported - modules - set(sys.stdlib_module_names) == set()


def test_ruff_has_nothing_to_say():
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr


def test_ci_calls_the_command_of_the_readme():
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nbval_options_are_in_force(pytestconfig):
    assert pytestconfig.getoption("nbval_lax")
    assert pytestconfig.getoption("nbval_current_env")
    assert 0 < pytestconfig.getoption("nbval_cell_timeout") <= 600


def test_readme_shows_the_measured_table():
    """Of the tables the README has the last one, the comparison, below the line on the machine."""
    measured = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    _, machine, *_, comparison = measured.strip().split("\n\n")
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- bench -->\n")[1]
    assert shown.split("<!-- /bench -->")[0].strip() == f"{machine}\n\n{comparison}"
    assert "not reached" not in measured


def test_readme_hangs_the_whole_gallery():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipes = json.loads((ROOT / "images/recipes.json").read_text(encoding="utf-8"))
    for name, recipe in recipes.items():
        picture = re.escape(f"(images/gallery/{name}.jpg)")
        assert re.search(rf"\[!\[[^\]]{{40,}}\]{picture}\]{picture}", readme), name
        assert f"*{recipe['title']}*" in readme
    for path in NOTEBOOKS:
        assert f"](notebooks/{path.name})" in readme
