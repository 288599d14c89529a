"""Callbacks of a model in coordinates: sets, pictures, scores and likelihoods are of x, chains move in u.

Mutants that these tests kill: sets that are made in u, or of the box of u; scores by the energy of u; pictures of u;
chains that start at x in the box of u; a likelihood without the Jacobian; bits per dimension of the box of u.
"""

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    SGLD,
    AISLogZ,
    Box,
    FreshSamples,
    OODDetection,
    Refinement,
    ReplayBuffer,
    SampleGrid,
)
from ebm_lightning.callbacks import fresh_samples, sample_grid
from ebm_lightning.coordinates import Compose, NormalScores, Quantiles, Whitening
from ebm_lightning.evaluation.ood_sets import OOD_SETS
from ebm_lightning.evaluation.scores import log_density
from tests.callbacks.helpers import IMAGES
from tests.coordinates.kinds import midpoints
from tests.helpers import jem, trainer, weights
from tests.modules.coordinates_models import net

PLANE, LEVELS = Box(-1, 1, (2,)), 8


def dark_images(n: int = 48) -> DataLoader[Any]:
    """Images whose pixels are all below -0.5, with more of the darkest, in the two lowest of eight levels."""
    generator = torch.Generator().manual_seed(0)
    x = -1 + 0.4999 * torch.rand(n, 1, 8, 8, generator=generator).square()
    return DataLoader(TensorDataset(x, torch.randint(3, (n,), generator=generator)), 20)


def image_model(**arguments: Any) -> JEM:
    coordinates = Quantiles(IMAGES, LEVELS, smoothing=1e-3).fit(dark_images().dataset.tensors[0])
    settings = {"support": None, "coordinates": coordinates, "sampler": SGLD(1e-6, 1e-4, 2)}
    return jem(net(64), **(settings | arguments))


def plane_points(n: int = 400) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = 0.9 - 1.8 * torch.rand(n, 2, generator=generator).pow(3)
    return TensorDataset(x, torch.randint(3, (n,), generator=generator))


def plane_model(coordinates: Any = None) -> JEM:
    coordinates = (coordinates or Quantiles(PLANE, LEVELS)).fit(plane_points().tensors[0].split(100))
    return jem(net(), support=None, coordinates=coordinates)


def test_sets_are_made_of_x_and_scored_as_x(tmp_path):
    module, loader = image_model(), dark_images()
    x = loader.dataset.tensors[0]
    seen: dict[str, list[Tensor]] = {name: [] for name in ("inverted", "noise", "interpolated")}

    def recorded(name: str):
        def make(x: Tensor, support: Box, generator: torch.Generator) -> Tensor:
            assert support == IMAGES
            seen[name].append(OOD_SETS[name](x, support, generator))
            return seen[name][-1]

        return make

    callback = OODDetection({name: recorded(name) for name in seen}, directory=tmp_path)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    made = {name: torch.cat(parts) for name, parts in seen.items()}
    assert torch.equal(made["inverted"], -x)
    assert made["interpolated"].max() < -0.5
    assert made["noise"].min() < -0.9
    assert made["noise"].max() > 0.9
    with torch.no_grad():
        for name, other in made.items():
            IMAGES.check(other)
            scores = torch.cat([log_density(module.energy, part) for part in (x, other)])
            expected = roc_auc_score([1] * len(x) + [0] * len(other), scores)
            assert metrics[f"ood/{name}/auroc"] == pytest.approx(expected, abs=1e-3)
    assert metrics["ood/inverted/auroc"] == 1, "the energy of u would not see how rare these levels are"


def test_images_of_a_set_are_checked_as_x(tmp_path):
    t = trainer(tmp_path, callbacks=[OODDetection({"bytes": torch.full((9, 1, 8, 8), 1.5)})])
    with pytest.raises(ValueError, match=r"'bytes' should be in the box \[-1, 1\]"):
        t.test(image_model(), dark_images(), verbose=False)


def test_refinement_moves_in_coordinates(tmp_path):
    """Noiseless steps against gradient descent by hand on the energy of u."""
    module, data = (
        plane_model(Compose([Quantiles(PLANE, LEVELS), NormalScores((2,)), Whitening((2,))])),
        plane_points(60),
    )
    callback = Refinement([0, 1, 10], SGLD(0.05, 0.0))
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, DataLoader(data, 60), verbose=False)
    x, y = data.tensors
    u, path = module.coordinates(x), []
    for _ in range(11):
        u.requires_grad_()
        energy = module.chain_energy(u)
        path.append((energy.detach(), (module.classifier(u).argmax(1) == y).float().mean()))
        u = (u - 0.05 * torch.autograd.grad(energy.sum(), u)[0]).detach()
    for k in (0, 1, 10):
        assert metrics[f"refine/energy_change_{k}"] == pytest.approx(float((path[k][0] - path[0][0]).mean()), abs=1e-4)
        assert metrics[f"refine/accuracy_{k}"] == pytest.approx(float(path[k][1]), abs=1e-6)
    assert metrics["refine/accuracy_0"] == pytest.approx(metrics["test/accuracy"])


@pytest.fixture
def shown(monkeypatch) -> list[Tensor]:
    """The images of all grids."""
    grids: list[Tensor] = []
    for module in (fresh_samples, sample_grid):
        original = module.plot_points

        def recorded(axes: Any, x: Tensor, *arguments: Any, original=original) -> None:
            grids.append(x)
            original(axes, x, *arguments)

        monkeypatch.setattr(module, "plot_points", recorded)
    return grids


def test_fresh_samples_are_of_x(tmp_path, shown):
    """Chains that hardly move from uniform u: draws of the histograms, which are as dark as the data."""
    callback = FreshSamples(4, directory=tmp_path)
    trainer(tmp_path, callbacks=[callback]).test(image_model(), dark_images(), verbose=False)
    assert [len(x) for x in shown] == [16, 16, 16, *[4] * 9]  # where chains start, their ends, and test images
    for x in (shown[0], shown[1], torch.cat(shown[3::3]), torch.cat(shown[4::3])):
        IMAGES.check(x)
        assert float((x < -0.5).float().mean()) == pytest.approx(1, abs=0.01)
        assert float(x.mean()) == pytest.approx(float(dark_images().dataset.tensors[0].mean()), abs=0.05)


@pytest.mark.parametrize("source", ["chains", "fresh"])
def test_grids_are_of_x(source, tmp_path, shown):
    module = image_model(chains=ReplayBuffer(32))
    trainer(tmp_path, callbacks=[SampleGrid(0, samples=9, source=source)]).fit(module, dark_images())
    (x,) = shown
    IMAGES.check(x)
    assert float((x < -0.5).float().mean()) == pytest.approx(1, abs=0.02)
    if source == "chains":
        oldest = module.chains.age.argsort(descending=True, stable=True)[:9]
        assert torch.equal(x, module.coordinates.inv(module.chains.x[oldest]))


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
@pytest.mark.parametrize("normal", [False, True], ids=["box", "plane"])
def test_log_z_and_likelihood_match_quadrature_over_x(normal, tmp_path):
    module = plane_model(Compose([Quantiles(PLANE, LEVELS), NormalScores((2,)), Whitening((2,))]) if normal else None)
    data = plane_points()
    callback = AISLogZ(temperatures=60, num_chains=400, num_levels=LEVELS, directory=tmp_path)
    loader = DataLoader(data, 200)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    grid, volume = midpoints(-1, 1, 800, 2)
    with torch.no_grad():
        energies = torch.cat([module.energy(part).double() for part in grid.float().split(100_000)])
        log_z = float((-energies).logsumexp(0)) + math.log(volume)
        log_p = float(-module.energy(data.tensors[0]).mean()) - metrics["ais/log_z"]
    assert abs(metrics["ais/log_z"] - log_z) < 5 * metrics["ais/std_err"] + 2e-3
    assert metrics["ais/std_err"] < 0.05
    assert metrics["ais/log_likelihood"] == pytest.approx(log_p, abs=1e-4)
    assert metrics["ais/bits_per_dim"] == pytest.approx(-log_p / (2 * math.log(2)) + math.log2(LEVELS / 2), abs=1e-4)


def test_an_untrained_model_has_the_bits_of_the_histograms(tmp_path):
    """With a last layer of 0: log Z = log K, and a table of counts gives the bits. Exactly, whatever the annealing."""
    module = image_model()
    nn.init.zeros_(module.classifier.layers[-1].weight)
    nn.init.zeros_(module.classifier.layers[-1].bias)
    callback = AISLogZ(temperatures=2, num_chains=100, num_levels=LEVELS)
    loader = dark_images()
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    x = loader.dataset.tensors[0].flatten(1)
    levels = ((x.double() + 1) / 2 * LEVELS).floor().long()
    counts = torch.stack([(levels == k).sum(0) for k in range(LEVELS)], 1).double()
    mass = counts + 1e-3 * (0.95 * counts.sum(0) / counts.sum() + 0.05 / LEVELS)
    bits = -(mass / mass.sum(1, keepdim=True)).log2().gather(1, levels.T).mean()
    assert metrics["ais/log_z"] == pytest.approx(math.log(3), abs=1e-5)
    assert metrics["ais/bits_per_dim"] == pytest.approx(float(bits), abs=1e-5)
    assert float(bits) < 1
    assert metrics["ais/reliable"] == 1
    assert metrics["ais/prior_0"] == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_callbacks_do_not_change_a_run(tmp_path):
    ends = []
    for callbacks in (
        [],
        [OODDetection(stages=["val"]), AISLogZ(1, 3, 20), SampleGrid(1), SampleGrid(1, source="fresh")],
    ):
        module = image_model(coordinates=Quantiles(IMAGES, LEVELS))
        trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(module, dark_images(), dark_images())
        ends.append((weights(module), module.chains.x, module.coordinates.cumulative))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
