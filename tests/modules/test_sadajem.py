"""Sharpness-aware steps against the two passes written out.

Mutants killed: e with the wrong sign, without rho or with its square; plain instead of adaptive, and the reverse; new
negatives in the second pass, or its loss without weights; batch-norm statistics updated twice; weights not restored;
autocast's cached copies of the weights from the first pass.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from ebm_lightning import SADAJEM, SGLD, Box, JointEnergy, ReplayBuffer
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights
from tests.resume.ranks import logs, run_ranks, saved

WEIGHTS = {"conditional_weight": 0.7, "generative_weight": 0.3, "energy_l2": 0.05}


class Counting(SGLD):
    runs: list[int] = []  # noqa: RUF012 (a frozen dataclass cannot have it as an attribute of instances)

    def run(self, *args, **kwargs):
        self.runs.append(1)
        return super().run(*args, **kwargs)


def sadajem(network: nn.Module | None = None, **arguments) -> SADAJEM:
    torch.manual_seed(0)
    defaults = {"sampler": SGLD(0.1, 0.01, 3), "chains": ReplayBuffer(30), "seed": 0, **WEIGHTS}
    return SADAJEM(network or MLP(4, 3, (8,)), 3, BOX, **{**defaults, **arguments})


def one_batch() -> DataLoader:
    return batches(8, 8)


def sgd(lr: float = 1.0):
    return lambda parameters: torch.optim.SGD(parameters, lr)


def expected_weights(rho: float, adaptive: bool, precision: torch.dtype | None = None) -> torch.Tensor:
    """The weights after one SGD step with lr 1, from the two passes written out."""
    module = sadajem(rho=0.0)
    x, y = next(iter(one_batch()))
    module.start_chains()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        negatives = module.negatives(x)
    return weights(module) - perturbed_gradient(module.energy, x, y, negatives, rho, adaptive, (0.7, 0.3), precision)


def perturbed_gradient(energy, x, y, negatives, rho, adaptive, terms, precision=None) -> torch.Tensor:
    """The gradient of the loss at w + e, from the formulas; ``terms`` are the weights of its two terms."""

    def gradient_at(point: list[torch.Tensor]) -> list[torch.Tensor]:
        moved = copy.deepcopy(energy)
        for p, value in zip(moved.parameters(), point, strict=True):
            p.data = value.clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            conditional = nn.functional.cross_entropy(moved.logits(x), y)
            energies = moved(torch.cat([x, negatives]))
        gap = energies[: len(x)].mean() - energies[len(x) :].mean()
        loss = terms[0] * conditional + terms[1] * gap + 0.05 * 2 * energies.square().mean()
        return list(torch.autograd.grad(loss, list(moved.parameters())))

    start = [p.detach() for p in energy.parameters()]
    gradient = gradient_at(start)
    scale = [p.abs() if adaptive else torch.ones_like(p) for p in start]
    length = torch.cat([(g * t).flatten() for g, t in zip(gradient, scale, strict=True)]).norm()
    perturbed = [p + rho * t * t * g / length for p, t, g in zip(start, scale, gradient, strict=True)]
    return torch.cat([g.flatten() for g in gradient_at(perturbed)])


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_a_step_uses_the_gradient_at_the_perturbed_weights(tmp_path, rho, adaptive):
    module = sadajem(rho=rho, adaptive=adaptive, optimizer=sgd())
    trainer(tmp_path, max_steps=1).fit(module, one_batch())
    assert torch.allclose(weights(module), expected_weights(rho, adaptive), atol=1e-5)
    assert not torch.allclose(weights(module), expected_weights(rho, not adaptive), atol=1e-3)


def test_under_bfloat16_the_second_pass_uses_the_perturbed_weights(tmp_path):
    module = sadajem(rho=0.5, adaptive=False, optimizer=sgd())
    trainer(tmp_path, max_steps=1, precision="bf16-mixed").fit(module, one_batch())
    assert torch.allclose(weights(module), expected_weights(0.5, False, torch.bfloat16), atol=0.02)
    assert (weights(module) - expected_weights(0.0, False, torch.bfloat16)).abs().max() > 0.1


def test_rho_0_is_jem_bit_for_bit(tmp_path):
    ends = []
    for module in (sadajem(rho=0.0), jem(**WEIGHTS)):
        trainer(tmp_path, max_epochs=2).fit(module, batches())
        ends.append(weights(module))
    assert torch.equal(*ends)


@pytest.mark.parametrize("term", ["generative_weight", "class_conditional_weight"])
def test_chains_run_once_for_both_passes(tmp_path, term):
    Counting.runs.clear()
    others = {"generative_weight": 0.0, "conditional_weight": 1.0}
    module = sadajem(sampler=Counting(0.1, 0.01, 3), **{**others, term: 1.0})
    trainer(tmp_path).fit(module, batches())
    assert len(Counting.runs) == 3


def test_batch_norm_statistics_are_updated_once(tmp_path):
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 3))

    once = network().train()
    for x, _ in batches(8, 8):
        once(x)
    module = sadajem(network(), rho=0.5, optimizer=sgd(0.0))
    trainer(tmp_path).fit(module, one_batch())
    assert all(torch.equal(a, b) for a, b in zip(once[1].buffers(), module.classifier[1].buffers(), strict=True))
    assert module.classifier[1].momentum == 0.1


class Failing(SADAJEM):
    """Its second pass fails."""

    calls = 0

    def conditional_loss(self, logits, y):
        self.calls += 1
        return super().conditional_loss(logits, y) * (float("nan") if self.calls == 2 else 1.0)


def test_weights_are_restored_bit_for_bit_also_when_the_second_pass_fails(tmp_path):
    module = sadajem(optimizer=sgd(0.0))
    before = weights(module).clone()
    trainer(tmp_path).fit(module, batches())
    assert torch.equal(weights(module), before)
    torch.manual_seed(0)
    failing = Failing(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 3), ReplayBuffer(30), seed=0)
    before = weights(failing).clone()
    with pytest.raises(RuntimeError, match="not finite"):
        trainer(tmp_path).fit(failing, batches())
    assert torch.equal(weights(failing), before)


def test_separate_batches_reach_their_terms(tmp_path):
    class Seen(SADAJEM):
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        def loss_terms(self, x, y, x_gen=None, y_gen=None):
            self.seen.append((len(x), len(x_gen)))
            return super().loss_terms(x, y, x_gen, y_gen)

    torch.manual_seed(0)
    module = Seen(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 3), ReplayBuffer(30), seed=0)
    trainer(tmp_path).fit(module, CombinedLoader({"clf": batches(24, 8), "gen": batches(12, 4)}, "min_size"))
    assert module.seen == [(8, 4)] * 6


def test_it_reloads_and_checks_rho(tmp_path):
    run = trainer(tmp_path)
    run.fit(sadajem(rho=0.7, adaptive=False), batches())
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = SADAJEM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (again.rho, again.adaptive) == (0.7, False)
    with pytest.raises(ValueError, match=r"'rho' should be 0 or positive, got -1"):
        sadajem(rho=-1)


def test_float16_is_an_error(tmp_path):
    module = sadajem()
    module._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(RuntimeError, match="'precision' should be bf16-mixed or 32-true for SADAJEM, got 16-mixed"):
        module.on_fit_start()


@pytest.mark.slow
def test_ranks_perturb_by_their_own_batch_and_average_the_gradients(tmp_path):
    assert run_ranks(tmp_path, "sharpness_aware", 2) == [0, 0], logs(tmp_path, "sharpness_aware")
    ranks = saved(tmp_path, "sharpness_aware", 2)
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert not torch.equal(ranks[0]["negatives"], ranks[1]["negatives"])
    network = MLP(2, 3, (8,))
    network.load_state_dict(ranks[0]["start"])
    energy = JointEnergy(network, Box(-4, 4, (2,)))
    passes = [(rank["x"], rank["y"], rank["negatives"]) for rank in ranks]
    gradients = [perturbed_gradient(energy, *one, 0.5, False, (1.0, 1.0)) for one in passes]
    assert torch.allclose(ranks[0]["weights"], weights(network) - (gradients[0] + gradients[1]) / 2, atol=1e-5)
