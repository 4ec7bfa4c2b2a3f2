"""The rules of the project, checked on its source, and tests that they catch violations."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from app.pages import PAGES

ROOT = Path(__file__).parents[1]
CORE, APP = ROOT / "samsvae_core", ROOT / "app"
# A wing imports only wings that stand before it; those side by side know nothing of each other.
WINGS = {
    "samsvae_core": [
        {"system"},
        {"genesets"},
        {"data"},
        {"models"},
        {"training", "bundle"},
        {"evaluation"},
        {"analysis"},
        {"pipeline"},
        {"cli"},
    ],
    "app": [
        {"figures", "server"},
        {"export"},
        {"session"},
        {"components"},
        {"views"},
    ],
}
# Where a program starts: these may import every wing, and no wing imports them.
STARTS = {"samsvae_core": {"__init__", "__main__"}, "app": {"__init__", "main", "serve"}}
# What every wing of a package may import, which imports nothing of it.
SHARED = {"samsvae_core": set(), "app": {"pages"}}
VIEW_IMPORTS = {
    "functools",
    "typing",
    "collections",
    "streamlit",
    "app",
    "samsvae_core",
    "numpy",
    "pandas",
    "__future__",
}
SOURCES = sorted([*CORE.rglob("*.py"), *APP.rglob("*.py")])
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in SOURCES}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> set[str]:
    """Return the modules a source imports; "from a import b" is a.b if a is one of our packages."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                names.add(inside if inside in MODULES else str(node.module))
    return names


def forbidden_imports(module: str, source: str) -> set[str]:
    """Return the imports of a module that its wing may not make."""
    package, wing = module.split(".")[:2]
    place = next(i for i, wings in enumerate(WINGS[package]) if wing in wings)
    allowed = {wing}.union(SHARED[package], *WINGS[package][:place])
    used = {name for name in imports(source) if name.split(".")[0] == package}
    found = {name for name in used if name == package or name.split(".")[1] not in allowed}
    if package == "samsvae_core":
        outside = ("app", "streamlit", "plotly")
        found |= {name for name in imports(source) if name.split(".")[0] in outside}
    return found


def circle(sources: dict[str, str]) -> list[str]:
    """Return modules that import each other in a circle, or []."""
    try:
        TopologicalSorter({name: imports(source) for name, source in sources.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def forbidden_words(source: str) -> set[str]:
    """Return forbidden names in code, ignoring comments and texts."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & {"print", "eval", "exec"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} & {"torch.load", "torch.save"}
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "module", "name")]
        found |= {n for n in names if isinstance(n, str) and "pickle" in n}
        found |= {n for n in names if n == "unsafe_allow_html"}
    return found


LONGEST_MODULE, LONGEST_FUNCTION = 400, 60  # lines, those of a function without its docstring


def too_long(name: str, source: str) -> set[str]:
    """The module and its functions that have more lines than one takes in at a time."""
    found = {name} if len(source.splitlines()) > LONGEST_MODULE else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            after = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno - 1
            n_lines = (node.end_lineno or 0) - (after or 0)
            found |= {f"{name}:{node.name}"} if n_lines > LONGEST_FUNCTION else set()
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_can_be_read_at_once(path):
    assert too_long(name_of(path), path.read_text()) == set()


def test_what_is_too_long_is_caught():
    lines = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    assert too_long("a.py", lines) == {"a.py:f"}
    assert too_long("a.py", "pass\n" * (LONGEST_MODULE + 1)) == {"a.py"}


IN_WINGS = sorted(name for name in MODULES if name.count(".") > 1)


@pytest.mark.parametrize("module", IN_WINGS)
def test_a_wing_imports_only_wings_before_it(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    if path.stem == "__init__":
        body = ast.parse(path.read_text()).body
        assert [type(each) for each in body] == [ast.Expr]
    else:
        assert forbidden_imports(module, path.read_text()) == set()


def test_an_import_that_points_back_is_caught():
    model = "samsvae_core.models.samsvae"
    assert forbidden_imports(model, "from samsvae_core.bundle.bundle import load") == {
        "samsvae_core.bundle.bundle"
    }
    assert forbidden_imports(model, "import samsvae_core") == {"samsvae_core"}
    beside = "def f():\n    from samsvae_core.bundle import bundle"
    assert forbidden_imports("samsvae_core.training.loop", beside)
    assert forbidden_imports("samsvae_core.data.cells", "import streamlit as st") == {"streamlit"}
    assert forbidden_imports("app.session.page", "import samsvae_core.data.cells") == set()


def test_no_modules_import_each_other_in_a_circle():
    files = {name: ROOT / (name.replace(".", "/") + ".py") for name in MODULES}
    assert circle({name: path.read_text() for name, path in files.items()}) == []
    both = {"app.a": "import app.b", "app.b": "def f():\n    import app.a"}
    assert circle(both) == ["app.a", "app.b", "app.a"]


def test_what_every_wing_may_import_imports_nothing_of_its_package():
    for package, modules in SHARED.items():
        for module in modules:
            used = imports((ROOT / package / f"{module}.py").read_text())
            assert [name for name in used if name.split(".")[0] == package] == []
    assert forbidden_imports("app.figures.style", "from app.pages import PAGES") == set()


def test_the_table_of_pages_and_the_views_name_the_same():
    views = {path.stem for path in (APP / "views").glob("*.py")} - {"__init__"}
    assert views == set(PAGES)


def test_every_module_has_a_wing():
    for package, levels in WINGS.items():
        folder = ROOT / package
        wings = set().union(*levels)
        assert {p.stem for p in folder.glob("*.py")} == STARTS[package] | SHARED[package]
        assert {p.parent.name for p in folder.glob("*/*.py")} == wings
        assert not list(folder.glob("*/*/*.py"))


def view_problems(source: str) -> set[str]:
    used = {n.split(".")[0] for n in imports(source)} - VIEW_IMPORTS
    return used | ({"session_state"} if "session_state" in source else set())


@pytest.mark.parametrize("path", sorted((APP / "views").glob("*.py")), ids=name_of)
def test_views_hold_widgets_only(path):
    assert view_problems(path.read_text()) == set()


def test_a_view_with_numerics_or_state_is_caught():
    assert view_problems("import torch\nfrom plotly import express") == {"torch", "plotly"}
    assert view_problems("st.session_state['a'] = 1") == {"session_state"}


@pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=name_of)
def test_only_the_session_keeps_state(path):
    words = ["query_params[", "query_params."]
    if path.name != "charts.py":
        words += ["session_state", "cache_data", "cache_resource"]
    if path.parent.name != "session":
        assert [word for word in words if word in path.read_text()] == []


@pytest.mark.parametrize("path", sorted((APP / "figures").glob("*.py")), ids=name_of)
def test_figures_know_nothing_of_streamlit_or_bundles(path):
    used = {n.split(".")[0] for n in imports(path.read_text())}
    assert not used & {"streamlit", "torch"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_printed_or_shown_unescaped(path):
    assert forbidden_words(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("print('a')", "print"),
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("pd.read_pickle(path)", "read_pickle"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("torch.load(path)", "torch.load"),
        ("st.markdown(text, unsafe_allow_html=True)", "unsafe_allow_html"),
    ],
)
def test_what_is_forbidden_is_caught(source, word):
    assert word in forbidden_words(source)
    assert forbidden_words(repr(source)) == set()  # a text that only speaks of it


@pytest.mark.parametrize("module", ["samsvae_core", "samsvae_core.__main__", "app.session.page"])
def test_imports_are_light_and_quiet(module):
    program = f"import sys, {module}\nprint(*{{'umap', 'gseapy', 'numba'}} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""


def test_importing_the_core_seeds_nothing():
    program = (
        "import random, torch; a = torch.get_rng_state(); b = random.getstate()\n"
        "import samsvae_core.pipeline.build\n"
        "assert torch.equal(a, torch.get_rng_state()) and b == random.getstate()"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_the_annotations_of_shapes_are_checked_in_these_tests():
    import torch

    from samsvae_core.models.distributions import mask_kl

    with pytest.raises(Exception, match="Type-check error"):
        mask_kl(torch.zeros(3, 2), torch.zeros(4, 1))


def test_the_names_of_the_readme_are_exported_and_light():
    program = (
        "import sys, samsvae_core\nassert 'torch' not in sys.modules\n"
        "for name in samsvae_core.HOMES: getattr(samsvae_core, name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
