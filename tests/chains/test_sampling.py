"""Samples from new chains."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning import SGLD, Box, ClassGaussians, Compute, ConditionalEBM
from ebm_lightning.chains.sampling import sample_chains, with_steps
from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import HMC
from ebm_lightning.supports import Euclidean, Gaussian
from tests.conftest import gaussian_z


class Linear(nn.Module):
    """E(x, y) = -w_y x with w = (3, -1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([3 * x, -x], 1)


def test_chains_follow_the_joint_energy_of_their_labels(seed):
    """In [-1, 1] at temperature 1, the mean of x given y is coth(w_y) - 1 / w_y."""
    module = ConditionalEBM(Linear(), 2, Box(-1, 1, (1,)))
    labels = torch.arange(2).repeat_interleave(3000)
    sampler, generator = SGLD.langevin(0.01, steps=200), make_generator(seed)
    x = module.sample(6000, labels, sampler=sampler, generator=generator, batch_size=2500).squeeze(1)
    for w, part in zip((3.0, -1.0), x.chunk(2), strict=True):
        expected = 1 / math.tanh(w) - 1 / w
        # The step size has a bias of up to 0.01.
        assert abs(float(part.mean()) - expected) < 5 * float(part.std()) / 3000**0.5 + 0.01


def test_chains_start_at_the_initial_distribution_of_their_class(seed):
    """Classes at -0.5 and 0.5, and steps too short to leave them."""
    initial, labels = ClassGaussians(1e-6), torch.arange(2).repeat_interleave(20)
    initial.fit([(labels.float().view(-1, 1) - 0.5, labels)], 2)
    module, still = ConditionalEBM(MLP(1, 2, (4,)), 2, Box(-1, 1, (1,))), SGLD(1e-9, 1e-9, steps=1)

    def sample(initial):
        generator = make_generator(seed)
        return module.sample(40, labels.flip(0), sampler=still, initial=initial, generator=generator, batch_size=7)

    x = sample(initial)
    torch.testing.assert_close(x.squeeze(1), 0.5 - labels.float(), atol=0.01, rtol=0)
    assert not torch.equal(x, sample(None))


TARGET = GaussianEnergy(torch.tensor([0.5]), torch.tensor([0.8]))
LINE = Gaussian(0.0, 1.0, (1,))


def test_samples_follow_the_energy(seed):
    """Batches of 1500, the last of them smaller. Kills: chains that are copied, and a batch with a fixed seed."""
    x = sample_chains(TARGET, LINE, HMC(0.3, 20), 8000, make_generator(seed), batch_size=1500)
    assert x.shape == (8000, 1)
    assert len(x.unique()) > 7900
    assert gaussian_z(x[:, 0], 0.5, 0.64) < 5


def test_each_sample_has_its_label():
    """Kills: labels of the first batch for all batches, labels that do not reach the energy."""
    labels = torch.arange(11) % 4

    def energy(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, 0] - y).square() / 2

    x = sample_chains(energy, LINE, SGLD(1.0, 0.0, 2), 11, make_generator(0), labels=labels, batch_size=4)
    assert torch.equal(x[:, 0], labels.float())


def test_equal_generators_give_equal_samples_in_any_mode(seed):
    """Kills: chains in the precision of a surrounding autocast, or that fail in inference mode."""
    net = MLP(1, 2, (8,))
    expected = ConditionalEBM(net, 2, LINE).energy
    sample = functools.partial(sample_chains, expected, LINE, SGLD(0.1, 0.1, 3), 9, batch_size=4)
    plain = sample(make_generator(seed))
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            inside = sample(make_generator(seed))
        assert torch.equal(inside, plain)
        assert not inside.is_inference()
    assert not torch.equal(sample(make_generator(seed), compute=Compute("bf16")), plain)
    assert not torch.equal(sample(make_generator(seed, "other")), plain)


def test_sampling_changes_neither_the_module_nor_the_global_random_state():
    module = ConditionalEBM(nn.Sequential(MLP(1, 2, (8,)), nn.Dropout(0.5)), 2, LINE)
    before = torch.get_rng_state()
    sample_chains(module.energy, LINE, SGLD(0.1, 0.1, 3), 9, make_generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_progress_sees_every_batch():
    seen = []

    def progress(batches):
        for i in batches:
            seen.append((i, len(batches)))
            yield i

    sample_chains(TARGET, LINE, SGLD(0.1, 0.1, 1), 9, make_generator(0), batch_size=4, progress=progress)
    assert seen == [(0, 3), (4, 3), (8, 3)]


def test_bad_arguments():
    sample = functools.partial(sample_chains, TARGET, sampler=SGLD(0.1, 0.1, 1), generator=make_generator(0))
    with pytest.raises(ValueError, match="'n' should be at least 1, got 0"):
        sample(LINE, n=0)
    with pytest.raises(ValueError, match="'batch_size' should be at least 1, got 0"):
        sample(LINE, n=3, batch_size=0)
    with pytest.raises(ValueError, match="'support' should have finite mass"):
        sample(Euclidean((1,)), n=3)
    assert sample(Euclidean((1,)), n=3, initial=LINE).shape == (3, 1)


def test_steps_are_changed_on_a_copy():
    sampler = SGLD(0.1, 0.01, steps=3)
    longer = with_steps(sampler, 70)
    assert (longer.steps, sampler.steps) == (70, 3)
    assert longer.noise == sampler.noise
    assert with_steps(sampler, None) is sampler
