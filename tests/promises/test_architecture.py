"""The house: who may import whom, and what a start costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.sources import REPO

PACKAGE, TESTS = REPO / "posduif_cli", REPO / "tests"
# The libraries for compression, encryption and object stores, each in one file of the core.
ALLOWED = {("streams.py", "zstandard"), ("streams.py", "pyrage"), ("stores.py", "obstore")}
MAY_IMPORT = {
    "main": {"cli", "errors"},
    "cli": {"core", "render", "config", "models", "notation", "errors", "cli"},
    "core": {"db", "models", "notation", "errors", "core"},
    "db": {"models", "notation", "errors", "db"},
    "render": {"models", "notation", "errors", "render"},
    "config": {"models", "notation", "errors", "config"},
    "notation": {"errors"},
    "models": {"errors", "models"},
    "errors": set(),
    "__main__": {"main"},
    "__init__": set(),
}
OWNERS = {
    "typer": {"cli"},
    "psycopg": {"db"},
    "rich": {"render"},
    "qrcode": {"render"},
    "yaml": {"config", "render"},
}
# The wings of the core: each imports those of a lower rank and itself, and those of one rank never meet.
RANKS = {
    "names": 0,
    "folders": 0,
    "store": 0,
    "fleet": 1,
    "schema": 2,
    "desk": 2,
    "tenants": 3,
    "checks": 3,
    "copies": 4,
}
RANKS |= {"servers": 5, "quickstart": 6}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found += [f"{base}.{alias.name}" for alias in node.names] if base == "posduif_cli" else [base]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_import_in_one_direction(path: Path) -> None:
    own = layer(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "posduif_cli" and rest and rest[0] != "__version__":
            assert rest[0] in MAY_IMPORT[own], f"{own} must not import {name}"
        elif top in OWNERS:
            assert own in OWNERS[top], f"{own} must not import {top}"
        elif own == "core" and (path.name, top) not in ALLOWED:
            assert top in sys.stdlib_module_names | {"posduif_cli"}, f"core must not import {top}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda path: path.name)
def test_wings_import_in_one_direction(path: Path) -> None:
    own = path.relative_to(PACKAGE / "core").parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("posduif_cli.core"):
            below = str(node.module).split(".")[2:3] or [alias.name for alias in node.names]
            for wing in below:
                assert wing == own or RANKS[wing] < RANKS[own], f"{own} must not import {wing}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_wing_s_init_is_a_docstring(path: Path) -> None:
    assert [type(node) for node in ast.parse(path.read_text(encoding="utf-8")).body] == [ast.Expr]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_render_prints_and_only_config_reads_the_environment(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    if layer(path) != "render":
        assert "print" not in names
    if layer(path) != "config":
        assert not {"os.environ", "os.getenv"} & attributes


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Lazy and type-only imports count. What remains once modules that import none of ours are taken away is one."""
    named = {".".join(path.relative_to(REPO).with_suffix("").parts): path for path in FILES}
    needs: dict[str, set[str]] = {}
    for name, path in named.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        needs[name] = found & set(named)
    while free := {name for name, others in needs.items() if not others & set(needs)}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs, sorted(needs)


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "manager", "base"}
    assert not [path for path in FILES if path.stem in drawers]


def own_tests() -> dict[Path, ast.Module]:
    """Return all Python files of the tests, parsed, without the benchmarks."""
    paths = [path for path in TESTS.rglob("*.py") if TESTS / "bench" not in path.parents]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_no_test_module_imports_another() -> None:
    """What two of them need is in tests/support, which needs none of them."""
    wings = {path.name for path in TESTS.iterdir() if path.is_dir()} - {"support", "bench"}
    found = [(path.name, name) for path in own_tests() for name in imports(path)]
    assert ("test_architecture.py", "support.sources") in found
    assert [
        (importer, name)
        for importer, name in found
        if name.partition(".")[0] in {*wings, "tests", "conftest"} or "test_" in name
    ] == []


def test_what_tests_share_exists_once() -> None:
    """No test module has a function or a class under the name of a shared one; fixtures may take another's place."""
    defined: dict[str, list[str]] = {}
    for path, tree in own_tests().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                fixture = any(ast.unparse(each).startswith("pytest.fixture") for each in node.decorator_list)
                if not fixture:
                    defined.setdefault(node.name, []).append(str(path.relative_to(TESTS)))
    shared = {name: at for name, at in defined.items() if any(path.startswith("support/") for path in at)}
    assert {"Folder", "until", "kill"} <= set(shared)
    assert {name: at for name, at in shared.items() if len(at) > 1} == {}


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    return {name.partition(".")[0] for name in done.stderr.split()}


HEAVY = {"psycopg", "rich", "qrcode", "yaml"}


def test_importing_the_entry_loads_nothing_heavy() -> None:
    assert not loaded_by("import posduif_cli.main") & (HEAVY | {"typer"})


def test_version_is_answered_before_the_tree_is_built() -> None:
    assert not loaded_by("import posduif_cli.main as m; m.run(['version'])") & (HEAVY | {"typer"})


@pytest.mark.parametrize("argv", [["--help"], ["tenant", "--help"], ["token", "create", "--help"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    assert not loaded_by(f"import posduif_cli.main as m; m.run({argv!r})") & HEAVY


def test_completion_scripts_load_nothing_heavy() -> None:
    assert not loaded_by("import posduif_cli.main as m; m.run(['completion', 'show', 'bash'])") & HEAVY
