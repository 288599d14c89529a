"""A model in coordinates: its density is of x, its classifier and its chains are of u.

Mutants that these tests kill: an energy without the Jacobian, or with that of the inverse; a classifier that sees x;
data of the positive phase that are not mapped; chains that move in x; samples that are not mapped back.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning import (
    JEM,
    MALA,
    Box,
    JointEnergy,
    ais,
)
from ebm_lightning.coordinates import Identity, NormalScores, Quantiles, Whitening
from ebm_lightning.partition import exact_log_z
from ebm_lightning.supports import Euclidean, Gaussian
from tests.coordinates.kinds import KINDS, fitted, midpoints
from tests.helpers import recipe
from tests.modules.coordinates_models import BOX, LINE, Exact, N, gradient, line_model, model, net

X_AREA = {"levels": (-1, 1, 400), "whitening": (-8, 8, 500), "copula": (-1, 1, 800), "flow": (-9, 9, 400)}
U_AREA = {"levels": (0, 1, 400), "whitening": (-8, 8, 500), "copula": (-7, 7, 500), "flow": (-7, 7, 400)}


@torch.no_grad()
def log_integral(energy: JointEnergy, area: tuple[float, float, int], dimensions: int = 2) -> float:
    grid, volume = midpoints(*area, dimensions)
    parts = grid.to(next(energy.parameters()).dtype).split(100_000)
    return float(torch.cat([-energy(part).double() for part in parts]).logsumexp(0)) + math.log(volume)


@pytest.mark.parametrize("kind", X_AREA)
def test_z_is_the_same_in_x_and_in_u(kind):
    energy = JointEnergy(net(dtype=torch.float64, scale=2.0), fitted(kind).codomain, coordinates=fitted(kind))
    z_x, z_u = log_integral(energy, X_AREA[kind]), log_integral(energy.in_coordinates, U_AREA[kind])
    assert abs(z_u - math.log(3)) > 0.05
    assert z_x == pytest.approx(z_u, abs=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_is_that_of_u_minus_the_log_determinant(kind):
    coordinates, x, y = fitted(kind), KINDS[kind][1]()[:50], torch.arange(50) % 3
    energy = JointEnergy(net(dtype=torch.float64), coordinates.codomain, coordinates=coordinates, temperature=2.0)
    u = coordinates(x)
    log_det = coordinates.log_abs_det_jacobian(x, u)
    assert torch.allclose(energy(x), energy.in_coordinates(u) - log_det)
    assert torch.allclose(energy(x, y), energy.in_coordinates(u, y) - log_det)
    log_p = (energy.classifier(u) / 2.0).log_softmax(1)
    assert torch.equal(energy.logits(x), energy.classifier(u) / 2.0)
    assert torch.allclose(energy(x) - energy(x, y), log_p.gather(1, y[:, None])[:, 0])


def test_annealing_finds_z_of_x():
    module = line_model().eval()
    exact = log_integral(module.energy, (-2, 2, 8000), 1)
    assert exact_log_z(module.chain_energy, module.support).log_z == pytest.approx(exact, abs=1e-4)
    for energy in (module.energy, module.chain_energy):
        found = ais(energy, module.support, temperatures=30, num_chains=400, seed=0)
        assert abs(found.log_z - exact) < 5 * found.std_err
    grid, width = midpoints(-2, 2, 8000, 1)
    with torch.no_grad():
        log_p = -module.energy(grid.float()).double() - exact
    assert float(log_p.exp().sum() * width) == pytest.approx(1, abs=1e-4)


def test_samples_follow_the_density_of_x(seed):
    """The share of each level, in standard errors, of long exact chains from uniform u."""
    module = line_model(sampler=MALA(0.3, steps=60)).eval()
    x = module.sample(N, generator=torch.Generator().manual_seed(seed), batch_size=N)
    assert x.shape == (N, 1)
    LINE.check(x)
    grid, _ = midpoints(-2, 2, 8000, 1)
    with torch.no_grad():
        mass = (-module.energy(grid.float()).double()).softmax(0).view(8, -1).sum(1)
    share = ((x[:, 0] + 2) * 2).long().clamp(max=7).bincount(minlength=8) / N
    assert mass.max() > 0.3
    assert ((share - mass).abs() < 5 * (mass * (1 - mass) / N).sqrt()).all()


def unmapped(module: JEM, x: Tensor, y: Tensor) -> Tensor:
    u = (x + 2) / 4  # in the box of u, but not where the coordinates put it
    return module.positive_phase(module.chain_energy.logits(u), u, y) + module.negative_phase(u, y)


@pytest.mark.parametrize("weight", ["generative_weight", "joint_weight"])
def test_the_gradient_is_that_of_the_likelihood_of_x(weight, seed):
    weights = {"conditional_weight": 0.0, "generative_weight": 0.0, weight: 1.0}
    module = line_model(sampler=Exact(), **weights)
    module.classifier.double()
    module.start_chains()
    x, y = (torch.rand(N, 1) * 2 - 1.5).double(), torch.randint(3, (N,))
    grid, width = midpoints(-2, 2, 8000, 1)
    log_z = (-module.energy(grid)).logsumexp(0) + math.log(width)
    exact = gradient(module.energy(x, None if weight == "generative_weight" else y).mean() + log_z, module)
    ours = gradient(module.loss_terms(x, y)["gen"][1], module)
    assert exact.norm() > 0.1
    assert (ours - exact).norm() < 0.005 * exact.norm()
    assert (gradient(unmapped(module, x, y), module) - exact).norm() > 0.05 * exact.norm()


def test_the_support_is_where_the_coordinates_map_to():
    for support in (BOX, Euclidean((2,)), Box(0, 1, (3,))):
        with pytest.raises(
            ValueError, match=r"'support' should be where the values of the coordinates are, Box.low=0.0"
        ):
            model(support=support)
    with pytest.raises(ValueError, match="'support' should be given, such as Box"):
        JEM(net(), 3)
    assert model(support=Box(0, 1, (2,))).support == Box(0, 1, (2,))
    wide = model(Whitening((2,)), support=Gaussian(0.0, 2.0, (2,)))
    assert wide.support.std == 2.0, "another reference density on the same space"


def test_without_coordinates_nothing_changes():
    module = JEM(net(), 3, BOX)
    assert isinstance(module.coordinates, Identity)
    assert module.domain is module.support is BOX
    assert module.chain_energy is module.energy
    assert not any("coordinates" in name for name in module.state_dict())


CONFIG = """
trainer:
  max_steps: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 1
model:
  class_path: ebm_lightning.JEM
  init_args:
    classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 2, num_classes: 3}}
    num_classes: 3
    sampler: {class_path: ebm_lightning.SGLD, init_args: {step_size: 0.01, noise_std: 0.1, steps: 2}}
    coordinates:
      class_path: ebm_lightning.coordinates.Compose
      init_args:
        parts:
          - class_path: ebm_lightning.coordinates.Quantiles
            init_args:
              domain: {class_path: ebm_lightning.Box, init_args: {low: -4, high: 4, shape: [2]}}
              cells: 16
          - {class_path: ebm_lightning.coordinates.NormalScores, init_args: {shape: [2]}}
          - {class_path: ebm_lightning.coordinates.Whitening, init_args: {shape: [2]}}
data: {class_path: ebm_lightning.data.Rings, init_args: {size: 512}}
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_config_builds_a_composition(tmp_path):
    (tmp_path / "model.yaml").write_text(CONFIG)
    arguments = ["fit", "--config", str(tmp_path / "model.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    cli = recipe("train.py").main(arguments)
    parts = list(cli.model.coordinates.parts)
    assert [type(part) for part in parts] == [Quantiles, NormalScores, Whitening]
    assert parts[0].cells == 16
    x = cli.datamodule.train.tensors[0]
    assert torch.equal(parts[0].knots, Quantiles(Box(-4, 4, (2,)), cells=16).fit(x).knots)
    again = JEM.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert torch.equal(again.eval().energy(x[:9]), cli.model.eval().energy(x[:9]))
