"""New chains against annealed ones: agreement where they are draws of the model, and not where they are not.

Mutants that these tests kill: chains of the buffer in place of new ones; x in place of u; weights that are ignored; a
result of an earlier test; draws of the global random state.
"""

import math
from typing import Any

import pytest
import torch

from ebm_lightning import JEM, MALA, AISLogZ, Euclidean, Gaussian, ReplayBuffer, SampleAgreement
from ebm_lightning.energies import MixtureLogits
from ebm_lightning.partition import LogZ
from ebm_lightning.rng import make_generator
from tests.conftest import z_score
from tests.helpers import batches, jem, trainer
from tests.modules.coordinates_models import LINE, Batches, line_model
from tests.resume.runs import Rows

PRIOR = torch.tensor([0.5, 0.3, 0.2])
MEANS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
NAMES = ("energy_gap", "class_distance", "two_sample_accuracy")


def mixture(n: int, *stream: Any, shift: float = 0.0) -> torch.Tensor:
    generator = make_generator(*stream)
    y = torch.multinomial(PRIOR, n, replacement=True, generator=generator)
    return MEANS[y] + shift + torch.randn(n, 2, generator=generator)


class Fixed(AISLogZ):
    """A result with exact log Z_y, and draws of N(1, 2^2) that are weighted to be those of the mixture."""

    def __init__(self, module: JEM, seed: int, n: int = 1500) -> None:
        super().__init__()
        proposal = Gaussian(1.0, 2.0, (2,))
        x = proposal.sample(n, generator=make_generator(seed, "annealed"))
        with torch.no_grad():
            log_w = -module.energy(x).double() - proposal.log_prob(x)
        self.result = LogZ(0.0, 0.1, log_weights=log_w, samples=x, per_class=PRIOR.double().log())


class Draws(Gaussian):
    """Exact draws of the mixture as initial points."""

    def sample(self, n, *, labels=None, generator=None, device=None):
        return mixture(n, int(torch.randint(2**31, (), generator=generator)), shift=float(self.mean))


def model() -> JEM:
    settings = {"sampler": MALA(1e-6, 1), "chains": ReplayBuffer(10)}
    return jem(MixtureLogits(MEANS, 1.0, PRIOR), support=Euclidean((2,)), **settings)


def measured(seed: int, shift: float) -> list[dict[str, float]]:
    module = model()
    return [
        SampleAgreement(Fixed(module, 100 * seed + run), 500, initial=Draws(shift, 1.0, (2,)), seed=run).measure(module)
        for run in range(25)
    ]


def test_exact_draws_agree(seed):
    found = measured(seed, 0.0)
    gap = torch.tensor([m["energy_gap"] / m["energy_gap_std_err"] for m in found])
    accuracy = torch.tensor([(m["two_sample_accuracy"] - 0.5) / m["two_sample_std_err"] for m in found])
    for z in (gap, accuracy):
        assert z_score(z, 0.0) < 5
        assert 0.6 < float(z.std()) < 1.5
    distance = torch.tensor([m["class_distance"] for m in found])
    assert z_score(distance, sum(m["class_distance_noise"] for m in found) / len(found)) < 5


def test_shifted_draws_are_found(seed):
    for m in measured(seed, 0.7)[:5]:
        assert m["energy_gap"] > 5 * m["energy_gap_std_err"]
        assert m["two_sample_accuracy"] - 0.5 > 4 * m["two_sample_std_err"]
        assert m["class_distance"] > 2 * m["class_distance_noise"]


def test_values_are_logged_at_test_and_the_random_state_is_kept(tmp_path):
    rows, module = Rows(), jem(sampler=MALA(0.3, 4))
    ais = AISLogZ(0, temperatures=5, num_chains=80)
    agreement = SampleAgreement(ais, 40, steps=3)
    trainer(tmp_path, callbacks=[ais, agreement]).fit(module, batches(), batches())
    assert not agreement.metrics, "not in training"
    trainer(tmp_path, logger=rows, callbacks=[ais, agreement]).test(module, batches(), verbose=False)
    before = torch.get_rng_state()
    assert agreement.measure(module.eval()) == agreement.metrics
    assert torch.equal(torch.get_rng_state(), before)
    logged = {name.removeprefix("agreement/"): v for (name, _), v in rows.rows.items() if name.startswith("agreement")}
    assert logged == pytest.approx(agreement.metrics)
    errors = {"energy_gap_std_err", "class_distance_noise", "two_sample_std_err"}
    assert logged.keys() == {*NAMES, *errors}
    assert all(math.isfinite(value) for value in logged.values())


def test_new_chains_start_at_the_reference_and_not_at_the_buffer(monkeypatch):
    module, seen = jem(sampler=MALA(0.3, 4), chains=ReplayBuffer(30, initial=Gaussian(0.5, 0.01, (4,)))), {}
    sample = module.sample
    monkeypatch.setattr(module, "sample", lambda n, **given: seen.update(given) or sample(n, **given))
    ais = AISLogZ(0, 3, 40)
    ais.result = LogZ(0.0, samples=module.support.sample(30), log_weights=torch.zeros(30), per_class=torch.zeros(3))
    SampleAgreement(ais, 20, steps=7).measure(module)
    assert seen["initial"] is module.support
    assert seen["steps"] == 7
    SampleAgreement(ais, 20, sampler=MALA(0.1, 1), initial=(own := Gaussian(0.0, 0.1, (4,)))).measure(module)
    assert seen["initial"] is own
    assert seen["sampler"] == MALA(0.1, 1)


def test_chains_are_compared_in_coordinates(tmp_path, seed):
    """A model on a line: long chains from uniform u agree with annealed u."""
    module = line_model(sampler=MALA(0.3, 60)).eval()
    ais = AISLogZ(0, temperatures=30, num_chains=600)
    agreement = SampleAgreement(ais, 600, seed=seed)
    x = LINE.sample(40, generator=make_generator(seed))
    data = Batches((x, torch.zeros(40).long()))
    trainer(tmp_path, callbacks=[ais, agreement]).test(module, data, verbose=False)
    assert ais.result.samples.min() >= 0
    found = agreement.metrics
    assert abs(found["energy_gap"]) < 5 * found["energy_gap_std_err"]
    assert abs(found["two_sample_accuracy"] - 0.5) < 5 * found["two_sample_std_err"]
    assert found["class_distance"] < 5 * found["class_distance_noise"]


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_the_estimate_comes_first(tmp_path):
    """Otherwise the second test would compare with the result of the first."""
    ais = AISLogZ(0, 3, 40)
    trainer(tmp_path, callbacks=[ais]).test(jem(), batches(), verbose=False)
    assert ais.result is not None
    with pytest.raises(ValueError, match="'ais' should have run before SampleAgreement, got no result"):
        trainer(tmp_path, callbacks=[SampleAgreement(ais), ais]).test(jem(), batches(), verbose=False)
    with pytest.raises(ValueError, match="'ais' should have run before SampleAgreement, got no result"):
        trainer(tmp_path, callbacks=[SampleAgreement(AISLogZ(0, 3, 40), 20)]).test(jem(), batches(), verbose=False)
    with pytest.raises(ValueError, match="'samples' should be at least 20, got 19"):
        SampleAgreement(ais, 19)
