"""The base class and helpers, and rules that hold for every callback."""

import lightning as L
import pytest
import torch
from torch import Tensor

from ebm_lightning import (
    SGLD,
    AISLogZ,
    Calibration,
    ChainDiagnostics,
    ConditionalEBM,
    DivergenceGuard,
    EnergyExtremes,
    EnergyLandscape,
    ErrorBars,
    FreshSamples,
    OODDetection,
    Refinement,
    ReplayBuffer,
    Robustness,
    SampleAgreement,
    SampleGrid,
    SampleQuality,
    callbacks,
)
from ebm_lightning.callbacks.base import Quota, chosen_sampler, due
from ebm_lightning.evaluation.features import Penultimate
from ebm_lightning.evaluation.ood_sets import interpolated, noise
from ebm_lightning.evaluation.scores import approximate_mass, log_density, max_probability
from ebm_lightning.networks import ConvNet
from tests.callbacks.helpers import IMAGES, image_jem
from tests.helpers import batches, trainer, weights


@pytest.fixture
def loader():
    return batches(n=48, batch_size=20, shape=(1, 8, 8))


def every_callback(folder) -> list[L.Callback]:
    net = ConvNet((1, 8, 8), 3, 4)
    ais = AISLogZ(1, temperatures=3, num_chains=20, directory=folder)
    return [
        ais,
        Calibration(directory=folder),
        ChainDiagnostics(1),
        DivergenceGuard(2),
        EnergyExtremes(directory=folder),
        EnergyLandscape(1, points=8, directory=folder),
        ErrorBars(),
        FreshSamples(3, steps=2, directory=folder),
        OODDetection(
            {"noise": noise, "interpolated": interpolated, "images": torch.zeros(9, 1, 8, 8)},
            [log_density, max_probability, approximate_mass],
            ["val", "test"],
            directory=folder,
        ),
        Refinement([0, 2]),
        Robustness([0.1], [0.5], [0.3], steps=2, directory=folder),
        SampleAgreement(ais, samples=20, steps=2),
        SampleGrid(1, samples=4, source="fresh", directory=folder),
        SampleQuality(Penultimate(net), net, steps=2, samples=20),
    ]


def test_the_list_of_every_callback_is_complete(tmp_path):
    assert {type(callback).__name__ for callback in every_callback(tmp_path)} == set(callbacks.__all__)


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_a_fit_ends_with_the_same_weights_chains_and_random_state(tmp_path, loader):
    runs = []
    for present in ([], every_callback(tmp_path)):
        module = image_jem(chains=ReplayBuffer(30))
        t = trainer(tmp_path, max_epochs=2, callbacks=present)
        t.fit(module, loader, loader)
        runs.append((weights(module), module.chains.x, module.generator.get_state(), torch.get_rng_state()))
    for without, with_callbacks in zip(*runs, strict=True):
        assert torch.equal(without, with_callbacks)
    assert {"ais/log_z", "val/ece", "chains/energy_gap", "landscape/lost", "ood/noise/auroc"} <= set(t.callback_metrics)


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_a_test_changes_neither_the_module_nor_the_random_state(tmp_path, loader):
    module, states = image_jem(), []
    before = weights(module)
    for present in ([], every_callback(tmp_path)):
        torch.manual_seed(0)  # the loader draws a seed
        trainer(tmp_path, callbacks=present).test(module, loader, verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.equal(weights(module), before)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


class Plain(L.LightningModule):
    def training_step(self, batch, batch_idx): ...

    def configure_optimizers(self): ...


@pytest.mark.parametrize("callback", [Calibration(), OODDetection(), SampleGrid(), DivergenceGuard()])
def test_a_module_of_another_kind_is_refused(callback, tmp_path, loader):
    with pytest.raises(ValueError, match=f"{type(callback).__name__} needs a ConditionalEBM or JEM, got Plain"):
        trainer(tmp_path, callbacks=[callback]).fit(Plain(), loader)


def test_due():
    assert [count for count in range(1, 10) if due(count, 3)] == [3, 6, 9]
    assert not any(due(count, 0) for count in range(10))


def test_chosen_sampler():
    module = image_jem()
    assert chosen_sampler(module, None) is module.sampler
    longer = chosen_sampler(module, None, steps=70)
    assert (longer.steps, module.sampler.steps) == (70, 3)
    assert longer.noise == module.sampler.noise
    assert chosen_sampler(module, SGLD.jem()) == SGLD.jem()
    assert chosen_sampler(ConditionalEBM(ConvNet((1, 8, 8), 3), 3, IMAGES), None) == SGLD.jem()


def test_quota_divides_the_limit_among_ranks():
    quota = Quota(10, world_size=3)
    taken = [len(quota.take(torch.zeros(3))[0]) for _ in range(3)]
    assert (taken, quota.seen) == ([3, 1, 0], 4)
    assert quota.full
    assert len(Quota().take(torch.zeros(7))[0]) == 7


@pytest.mark.parametrize(("limit", "offered"), [(1, 9), (4, 10), (30, 48), (48, 48), (60, 48), (1000, 10_000)])
def test_quota_is_spread_evenly(limit, offered):
    """The number is exact, the first image is selected, and gaps differ by at most one."""
    quota, taken = Quota(limit, offered=offered), []
    for batch in torch.arange(offered).split(7):
        x, y = quota.take(batch, -batch)
        assert torch.equal(x, -y)
        taken += x.tolist()
    assert len(taken) == quota.seen == min(limit, offered)
    assert taken[0] == 0
    gaps = torch.tensor([*taken, offered]).diff()
    assert int(gaps.max()) - int(gaps.min()) <= 1


@pytest.mark.parametrize(("batches_run", "offered"), [(1.0, 48), (2, 40)])
def test_measured_images_are_spread_over_the_test_set(tmp_path, loader, batches_run, offered):
    asked: list[Tensor] = []

    def spy(energy, x: Tensor) -> Tensor:
        asked.append(x)
        return x.flatten(1).sum(1)

    present = [OODDetection(["flipped"], [spy], limit=10), Robustness([0.1], [], [], 1, limit=10)]
    t = trainer(tmp_path, callbacks=present, limit_test_batches=batches_run)
    (metrics,) = t.test(image_jem(), loader, verbose=False)
    rows = [i for i in range(offered) if i * 10 % offered < 10]
    x = loader.dataset.tensors[0][rows]
    asked_for = torch.cat(asked).flatten(1)
    assert torch.equal(asked_for.unique(dim=0), torch.cat([x, x.flip(-1)]).flatten(1).unique(dim=0))
    assert metrics["ood/images"] == metrics["robust/images"] == len(rows) == 10
