"""Data flows one way: each layer imports only from those to its left."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ebm_lightning"
STDLIB_AND_TORCH = {"torch"}
ALLOWED = {
    "memory": set(),
    "streams": STDLIB_AND_TORCH,
    "supports": STDLIB_AND_TORCH,
    "energies": STDLIB_AND_TORCH,
    "boltzmann": STDLIB_AND_TORCH,
    "samplers": STDLIB_AND_TORCH,
    "starts": STDLIB_AND_TORCH,
    "chains": STDLIB_AND_TORCH,
    "partition": STDLIB_AND_TORCH,
    "networks": STDLIB_AND_TORCH,
    "ood": STDLIB_AND_TORCH,
    "schedules": STDLIB_AND_TORCH,
    "scores": STDLIB_AND_TORCH,
    "attacks": STDLIB_AND_TORCH,
    "features": STDLIB_AND_TORCH,
    "report": set(),
    "modules": {"torch", "lightning", "torchmetrics", "numpy"},
    "metrics": {"torch", "lightning", "torchmetrics"},
    "callbacks": {"torch", "lightning", "torchmetrics", "torchvision", "matplotlib"},
    "data": {"torch", "torchdata", "lightning", "torchvision", "numpy", "sklearn"},
}
LEFT_TO_RIGHT = {
    "memory": set(),
    "streams": set(),
    "supports": set(),
    "networks": set(),
    "energies": {"supports"},
    "boltzmann": {"supports"},
    "samplers": {"boltzmann", "energies", "supports"},
    "starts": {"supports"},
    "chains": {"starts", "supports"},
    "partition": {"boltzmann", "energies", "supports", "samplers", "streams"},
    "ood": {"supports"},
    "schedules": set(),
    "scores": {"energies", "samplers"},
    "attacks": {"samplers", "supports"},
    "features": set(),
    "report": set(),
    "modules": {"boltzmann", "chains", "energies", "partition", "samplers", "starts", "streams", "supports"},
    "metrics": set(),
    "data": {"supports", "streams"},
    "callbacks": {
        *("attacks", "chains", "energies", "metrics", "modules", "ood", "partition", "samplers", "scores", "streams"),
        *("starts", "supports"),
    },
}
INSIDE_FUNCTIONS_ONLY = {"matplotlib", "sklearn", "wandb"}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(node: ast.AST) -> set[str]:
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            names |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            names.add(child.module)
    return names


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_the_left(path: Path) -> None:
    import sys

    own = layer(path)
    for name in imports(ast.parse(path.read_text())):
        package, *rest = name.split(".")
        if package == "ebm_lightning":
            assert rest, f"{path} imports the whole package"
            assert rest[0] == own or rest[0] in LEFT_TO_RIGHT[own], f"{own} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert package in ALLOWED[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in top:
        assert not {name.split(".")[0] for name in imports(node)} & INSIDE_FUNCTIONS_ONLY


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_recipes_do_not_import_each_other(path: Path) -> None:
    recipes = {p.stem for p in path.parent.glob("*.py")} | {"recipes"}
    assert not {name.split(".")[0] for name in imports(ast.parse(path.read_text()))} & recipes
