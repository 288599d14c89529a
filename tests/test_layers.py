"""Data flows one way: each layer imports only from those to its left, and the core imports torch only."""

import ast
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parent.parent / "ebm_lightning"
CORE = (
    "checks",
    "contracts",
    "supports",
    "coordinates",
    "energies",
    "rng",
    "networks",
    "rbm",
    "samplers",
    "chains",
    "partition",
)
PACKAGES = {
    **{name: {"torch"} for name in CORE},
    "_lazy": set(),
    "evaluation": {"torch", "torchmetrics"},
    "resume": {"torch", "lightning", "numpy"},
    "modules": {"torch", "lightning", "torchmetrics", "numpy", "tqdm"},
    "callbacks": {"torch", "lightning", "torchmetrics", "torchvision", "matplotlib", "tqdm"},
    "data": {"torch", "torchdata", "lightning", "torchvision", "numpy", "sklearn"},
    "protocol": {"torch", "lightning", "pytorch_ood", "tqdm", "wandb"},
    "models": {"torch"},
    "presets": set(),
    "commands": {"torch", "lightning", "numpy", "matplotlib", "tqdm"},
    "__main__": {"jsonargparse"},
}
"""What each layer may import from outside this package and the standard library."""
LEFT_TO_RIGHT = {
    "_lazy": set(),
    "checks": set(),
    "contracts": set(),
    "rng": set(),
    "networks": {"checks"},
    "supports": {"checks"},
    "coordinates": {"checks", "supports"},
    "energies": {"checks", "contracts", "coordinates", "supports"},
    "rbm": {"checks", "supports"},
    "samplers": {"checks", "rbm", "energies", "supports"},
    "chains": {"checks", "samplers", "supports"},
    "partition": {"checks", "rbm", "energies", "supports", "samplers", "rng"},
    "evaluation": {"_lazy", "checks", "coordinates", "energies", "rng", "samplers", "supports", "protocol"},
    "resume": {"chains", "checks", "rng", "supports"},
    "modules": {*CORE, "resume"},
    "data": {"_lazy", "checks", "supports", "rng"},
    "callbacks": {*CORE, "_lazy", "evaluation", "modules"},
    "protocol": {*CORE, "evaluation", "modules", "callbacks", "data"},
    "models": {"_lazy", "modules", "protocol"},
    "presets": set(),
    "commands": {*CORE, "_lazy", "evaluation", "modules", "callbacks", "data", "protocol", "models", "presets"},
    "__main__": {"_lazy", "models", "presets", "commands"},
}
MEASURES = {
    "scores",
    "ood_sets",
    "metrics",
    "attacks",
    "features",
    "two_samples",
    "closed_form",
    "bootstrap",
    "error_bars",
    "names",
    "__init__",
}  # of evaluation/, left of callbacks
LAZY = {
    "pytorch_ood",
    "sklearn",
    "wandb",
    "tqdm",
}  # optional: imported inside functions, except by commands, which need them anyway
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(node: ast.AST) -> set[str]:
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            names |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            names.add(child.module)
    return names


def layer(parts: list[str]) -> str:
    """The layer of a module; ``evaluate`` and what it is made of stand right of callbacks."""
    names = [part.removesuffix(".py") for part in parts]
    return "protocol" if names[0] == "evaluation" and len(names) > 1 and names[1] not in MEASURES else names[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_the_left(path):
    own = layer(list(path.relative_to(PACKAGE).parts))
    for name in imports(ast.parse(path.read_text())):
        package, *rest = name.split(".")
        if package == "ebm_lightning":
            assert rest, f"{path} imports the whole package"
            assert layer(rest) == own or layer(rest) in LEFT_TO_RIGHT[own], f"{own} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert package in PACKAGES[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_used(path):
    for node in [] if layer(list(path.relative_to(PACKAGE).parts)) == "commands" else ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name.split(".")[0] for name in imports(node)} & LAZY


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_recipes_do_not_import_each_other(path):
    recipes = {p.stem for p in path.parent.glob("*.py")} | {"recipes"}
    assert not {name.split(".")[0] for name in imports(ast.parse(path.read_text()))} & recipes


def test_the_core_needs_torch_only():
    blocked = ("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "torchdata", "matplotlib", "sklearn")
    code = f"""
import sys
for name in {blocked}: sys.modules[name] = None
import ebm_lightning
from ebm_lightning import {", ".join(CORE)}
from ebm_lightning import SGLD, Box, JointEnergy, ReplayBuffer, ais
from ebm_lightning.networks import MLP
box = Box(-1, 1, (2,))
energy = JointEnergy(MLP(2, 3, (4,)), box)
assert SGLD.jem(2)(energy, box.sample(5), support=box).shape == (5, 2)
assert ais(energy, box, temperatures=2, num_chains=20).log_z < 10
assert "JEM" in dir(ebm_lightning)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_needs_no_optional_package(tmp_path):
    """In an environment without them, a JEM trains on tensors, and names that draw say what to install."""
    optional = ("torchvision", "matplotlib", "scikit_learn", "sklearn", "wandb", "tensorboard", "zuko", "jsonargparse")
    for path in Path(torch.__file__).parent.parent.iterdir():
        if not path.name.startswith((*optional, "__editable__")):
            (tmp_path / path.name).symlink_to(path)
    code = """
import ebm_lightning, lightning as L, torch, warnings
from ebm_lightning import JEM, SGLD, Box, ChainDiagnostics, DivergenceGuard, ReplayBuffer
from ebm_lightning.networks import MLP
warnings.simplefilter("ignore")
data = torch.utils.data.TensorDataset(torch.rand(32, 2), torch.arange(32) % 2)
model = JEM(MLP(2, 2, (4,)), 2, Box(-1, 1, (2,)), SGLD.jem(1), ReplayBuffer(32))
options = dict(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
trainer = L.Trainer(callbacks=[ChainDiagnostics(1), DivergenceGuard()], **options)
trainer.fit(model, torch.utils.data.DataLoader(data, 16))
trainer.test(model, torch.utils.data.DataLoader(data, 16), verbose=False)

def error(action):
    try:
        action()
    except ModuleNotFoundError as error:
        return str(error)

assert error(lambda: ebm_lightning.AISLogZ).endswith('needs matplotlib: pip install "ebm_lightning[images]"')
assert error(lambda: ebm_lightning.data.Digits().setup()).endswith('sklearn: pip install "ebm_lightning[recipes]"')
"""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    subprocess.run([sys.executable, "-S", "-W", "ignore", "-c", code], check=True, env=environment, cwd=tmp_path)


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_the_core_imports_about_as_fast_as_torch():
    core = "; ".join(f"import ebm_lightning.{name}" for name in CORE)
    pairs = [(cpu_seconds("import torch"), cpu_seconds(core)) for _ in range(7)]  # interleaved
    ratio = statistics.median(own for _, own in pairs) / statistics.median(torch for torch, _ in pairs)
    assert ratio < 1.4, f"the core takes {ratio:.2f} times the CPU time of 'import torch'"


def test_names_of_the_package_are_found():
    import ebm_lightning

    for name in ebm_lightning.__all__:
        assert getattr(ebm_lightning, name) is not None
        assert name in dir(ebm_lightning)
    with pytest.raises(AttributeError, match="module 'ebm_lightning' has no attribute 'SGDL'"):
        _ = ebm_lightning.SGDL
