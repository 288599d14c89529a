"""Callbacks that measure a trained model at test: their numbers, their names, and that they leave no trace."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ebm_lightning import (
    PGD,
    SGLD,
    Box,
    ClassGaussians,
    ConditionalEBM,
    FreshSamples,
    OODDetection,
    Refinement,
    ReplayBuffer,
    Robustness,
    SampleQuality,
)
from ebm_lightning.callbacks.evaluation import Quota
from ebm_lightning.callbacks.fresh import chain_sampler, fresh_samples
from ebm_lightning.features import Penultimate
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.ood import OOD_SETS, transposed
from ebm_lightning.scores import approximate_mass, log_density, max_probability
from ebm_lightning.starts import Start
from ebm_lightning.streams import make_generator
from tests.helpers import batches, jem, trainer, weights

IMAGES = Box(-1, 1, (1, 8, 8))


@pytest.fixture
def loader():
    return batches(n=48, batch_size=20, shape=(1, 8, 8))


def image_jem(**arguments):
    torch.manual_seed(0)
    return jem(ConvNet((1, 8, 8), 3, 4), support=IMAGES, **arguments)


def every(folder) -> list[Callback]:
    net = ConvNet((1, 8, 8), 3, 4)
    return [
        OODDetection(scores=[log_density, max_probability, approximate_mass], directory=folder),
        Robustness([0.1], [0.5], [0.3], steps=2, directory=folder),
        SampleQuality(Penultimate(net), net, steps=2, samples=20),
        FreshSamples(3, steps=2, directory=folder),
        Refinement([0, 2]),
    ]


def test_all_of_them_leave_no_trace(tmp_path, loader):
    module, states = image_jem(), []
    before = weights(module)
    for callbacks in ([], every(tmp_path)):
        torch.manual_seed(0)  # the loader takes a number from it
        trainer(tmp_path, callbacks=callbacks).test(module, loader, verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.equal(weights(module), before)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_training_and_validation_end_as_without_them(tmp_path, loader):
    runs = []
    for callbacks in ([], every(tmp_path)):
        module = image_jem(chains=ReplayBuffer(30))
        trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(module, loader, loader)
        runs.append((weights(module), module.chains.x))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


# Foreign images.


def test_scores_of_a_set_and_of_real_images(tmp_path, loader):
    module, foreign = image_jem(), IMAGES.sample(30)
    sets = {"mirrored": transposed, "tensor": foreign, "pairs": TensorDataset(foreign, torch.zeros(30))}
    callback = OODDetection(sets, [log_density, approximate_mass])
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    x = loader.dataset.tensors[0]
    for score in (log_density, approximate_mass):
        with torch.no_grad():
            inside = score(module.energy, x)
            outside = {"mirrored": score(module.energy, x.mT), "tensor": score(module.energy, foreign)}
        for name in sets:
            other = outside.get(name, outside["tensor"])
            expected = roc_auc_score([1] * len(inside) + [0] * len(other), torch.cat([inside, other]))
            assert metrics[f"ood/{name}/{score.__name__}/auroc"] == pytest.approx(expected, abs=1e-6)
            threshold = inside.sort().values[2]  # 46 of 48 are at or above it, 45 would be too few
            assert metrics[f"ood/{name}/{score.__name__}/fpr95"] == pytest.approx(
                float((other >= threshold).float().mean())
            )
    assert metrics["ood/tensor/auroc"] == metrics["ood/tensor/log_density/auroc"]
    assert metrics["ood/images"] == 48
    assert {p.name for p in tmp_path.glob("*.png")} == {f"ood-{name}.png" for name in sets}


def test_data_are_scored_once_and_no_more_than_the_limit(tmp_path, loader):
    seen: list[int] = []

    def counting(energy, x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1).sum(1)

    callback = OODDetection({**OOD_SETS, "real": IMAGES.sample(99)}, [counting], limit=30)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    assert metrics["ood/images"] == 30
    assert sum(seen) == 30 * (1 + len(OOD_SETS) + 1)


def test_images_outside_the_box_and_unnamed_scores_are_refused(tmp_path, loader):
    t = trainer(tmp_path, callbacks=[OODDetection({"bytes": 255 * torch.rand(9, 1, 8, 8)})])
    with pytest.raises(ValueError, match=r"'bytes' should be in the box .* look like 8-bit pixels"):
        t.test(image_jem(), loader, verbose=False)
    with pytest.raises(ValueError, match="'scores' should be functions of different names"):
        OODDetection(scores=[log_density, log_density])


# Attacks and noise.


def test_robust_accuracy_of_a_linear_classifier_is_its_closed_form(tmp_path):
    """Right under L-inf attack where the margin is above eps |w|_1, without walls in the way."""
    torch.manual_seed(0)
    net, box = nn.Linear(4, 2), Box(-9, 9, (4,))
    loader = batches(n=200, batch_size=64, classes=2)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        net.weight.mul_(0.5)
        y.copy_(net(x).argmax(1))  # all right; how far from the border decides
        margins = (net(x)[:, 1] - net(x)[:, 0]).abs()
        w = net.weight[1] - net.weight[0]
    callback = Robustness([0.05, 0.2, 5.0], [0.3], [], steps=20, limit=None, directory=tmp_path)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(ConditionalEBM(net, 2, box), loader, verbose=False)
    assert metrics["robust/clean"] == 1
    for eps in (0.05, 0.2):
        assert metrics[f"robust/linf_{eps:g}"] == pytest.approx(float((margins > eps * w.abs().sum()).float().mean()))
    assert metrics["robust/linf_5"] == 0
    assert metrics["robust/l2_0.3"] == pytest.approx(float((margins > 0.3 * w.norm()).float().mean()), abs=0.01)
    assert metrics["robust/images"] == 200
    assert (tmp_path / "robust-curves.png").exists()


def test_noise_of_a_linear_classifier_is_a_gaussian_tail(tmp_path, seed):
    """A point m from the border, in units of x, stays right with probability Phi(m / std)."""
    net, box = nn.Linear(2, 2), Box(-99, 99, (2,))
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        net.bias.copy_(torch.tensor([0.0, 2.5]))
    n = 4000
    data = torch.utils.data.DataLoader(TensorDataset(torch.zeros(n, 2), torch.ones(n).long()), 1000)
    callback = Robustness([], [], [0.5, 1.0], limit=None, seed=seed)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(ConditionalEBM(net, 2, box), data, verbose=False)
    for std in (0.5, 1.0):
        p = 0.5 * (1 + math.erf(0.5 / std / math.sqrt(2)))
        assert abs(metrics[f"robust/noise_{std:g}"] - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_robustness_never_grows_with_the_radius_and_keeps_to_the_limit(tmp_path, loader):
    callback = Robustness([0.3, 0.05, 0.1], [2.0, 0.5], [], steps=3, limit=30)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    found = [metrics[f"robust/{name}"] for name in ("clean", "linf_0.05", "linf_0.1", "linf_0.3")]
    assert found == sorted(found, reverse=True)
    assert metrics["robust/images"] == 30
    assert all(value * 30 == pytest.approx(round(value * 30), abs=1e-4) for value in found)


def test_where_nothing_is_classified_correctly_nothing_is_attacked(tmp_path):
    data = torch.utils.data.DataLoader(TensorDataset(torch.zeros(8, 2), torch.ones(8).long()), 4)
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([9.0, 0.0]))
    callback = Robustness([0.1], [0.1], [], limit=None)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(
        ConditionalEBM(net, 2, Box(-1, 1, (2,))), data, verbose=False
    )
    assert (metrics["robust/clean"], metrics["robust/linf_0.1"], metrics["robust/l2_0.1"]) == (0, 0, 0)


def test_an_error_in_a_small_ball_is_one_in_a_larger_ball(tmp_path):
    """A thin shell of errors at distance 0.05, which a single long step leaps over."""

    class Shell(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x), 0.01 - (x.abs() - 0.05).abs()], 1)

    data = torch.utils.data.DataLoader(TensorDataset(torch.full((50, 1), 1e-3), torch.zeros(50).long()), 50)
    callback = Robustness([0.05, 0.9], [], [], steps=1, directory=tmp_path)
    module = ConditionalEBM(Shell(), 2, Box(-1, 1, (1,)))
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, data, verbose=False)
    assert (metrics["robust/clean"], metrics["robust/linf_0.05"], metrics["robust/linf_0.9"]) == (1, 0, 0)


# Fresh samples.


def test_fresh_chains_follow_the_joint_energy_where_labels_are_given(seed):
    """At temperature 1 on E(x, y) = -w_y x in [-1, 1]: the mean is coth(w_y) - 1 / w_y."""

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([3 * x, -x], 1)

    module = ConditionalEBM(Linear(), 2, Box(-1, 1, (1,)))
    labels = torch.arange(2).repeat_interleave(3000)
    sampler = SGLD.langevin(0.01, steps=200)
    x = fresh_samples(module, 6000, sampler, make_generator(seed), labels=labels, batch_size=2500).squeeze(1)
    for w, part in zip((3.0, -1.0), x.chunk(2), strict=True):
        expected = 1 / math.tanh(w) - 1 / w
        assert abs(float(part.mean()) - expected) < 5 * float(part.std()) / 3000**0.5 + 0.01  # the step's own bias


def test_fresh_chains_begin_where_they_are_told_each_in_its_class(seed):
    """Classes at -0.5 and 0.5, and steps too short to leave them."""
    start, labels = ClassGaussians(1e-6), torch.arange(2).repeat_interleave(20)
    start.fit([(labels.float().view(-1, 1) - 0.5, labels)], 2)
    module = ConditionalEBM(MLP(1, 2, (4,)), 2, Box(-1, 1, (1,)))
    still = SGLD(1e-9, 1e-9, steps=1)
    x = fresh_samples(module, 40, still, make_generator(seed), labels=labels.flip(0), start=start, batch_size=7)
    torch.testing.assert_close(x.squeeze(1), 0.5 - labels.float(), atol=0.01, rtol=0)
    assert not torch.equal(x, fresh_samples(module, 40, still, make_generator(seed), labels=labels.flip(0)))


class Grey(Start):
    """Every chain at one place; notes the labels that it was asked for."""

    def __init__(self) -> None:
        self.labels: list[Tensor | None] = []

    def sample(self, n, labels=None, generator=None, device=None):
        self.labels.append(labels)
        return torch.full((n, 1, 8, 8), 0.25)


def test_pictures_and_sample_quality_begin_where_they_are_told(tmp_path, loader):
    begun = []

    class Spy(SGLD):
        def run(self, energy, x, **arguments):
            begun.append(x)
            return super().run(energy, x, **arguments)

    spy, start, net = Spy(0.1, 0.01, 2), Grey(), ConvNet((1, 8, 8), 3, 4)
    pictures = FreshSamples(2, sampler=spy, start=start, directory=tmp_path)
    quality = SampleQuality(Penultimate(net), sampler=spy, samples=20, start=start, batch_size=8)
    trainer(tmp_path, callbacks=[pictures, quality]).test(image_jem(), loader, verbose=False)
    assert [len(x) for x in begun] == [4, 6, 8, 8, 4]
    assert all((x == 0.25).all() for x in begun)
    assert start.labels[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert [y for i, y in enumerate(start.labels) if i != 1] == [
        None
    ] * 7  # three batches of chains, and as many starts


def test_steps_replace_those_of_a_copy():
    module = image_jem()
    assert chain_sampler(module) is module.sampler
    longer = chain_sampler(module, steps=70)
    assert (longer.steps, module.sampler.steps) == (70, 3)
    assert longer.noise == module.sampler.noise
    assert chain_sampler(ConditionalEBM(ConvNet((1, 8, 8), 3), 3, IMAGES)) == SGLD.jem()


class Pixels(nn.Module):
    """Features of which all is known: the first two pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def test_fid_is_that_of_two_gaussians(seed):
    """|mu - mu'|^2 + sum (s - s')^2 for diagonal covariances, and the floor near 0."""
    n = 40_000
    real = torch.randn(2 * n, 2).double() * torch.tensor([1.0, 2.0])
    fresh = torch.randn(n, 2).double() * torch.tensor([3.0, 2.0]) + torch.tensor([0.0, 1.5])
    found = SampleQuality(Pixels(), label="pixels", samples=n).figures(real, fresh)
    assert found["fid_pixels"] == pytest.approx(1.5**2 + 2**2, rel=0.05)
    assert found["fid_pixels_floor"] < 1e-3
    assert found["kid_pixels"] > 100 * abs(found["kid_pixels_floor"])
    assert (found["generated"], found["reference"], found["held_out"]) == (n, n, n)


def test_starts_have_figures_of_their_own_which_move_no_other(seed):
    real, fresh, sure = torch.randn(400, 2).double(), torch.randn(200, 2).double(), 50 * torch.eye(4).repeat(50, 1)
    logits = {"logits_real": torch.randn(400, 4).double(), "logits_fresh": torch.randn(200, 4).double()}
    callback = SampleQuality(Pixels(), label="pixels", samples=200)
    without = callback.figures(real, fresh, **logits)
    found = callback.figures(real, fresh, **logits, start=fresh + 3, logits_start=sure.double())
    assert found["fid_pixels_start"] == pytest.approx(2 * 3**2, rel=0.2)
    assert found["is_pixels_start"] == pytest.approx(4, rel=0.05)
    assert {k: v for k, v in found.items() if not k.endswith("_start")} == without


def test_inception_score_runs_from_one_to_the_number_of_classes(seed):
    sure = 50 * torch.eye(4).repeat(100, 1).double()
    found = SampleQuality(Pixels(), samples=100).figures(
        torch.randn(800, 2).double(),
        torch.randn(400, 2).double(),
        logits_real=torch.zeros(800, 4).double(),
        logits_fresh=sure,
    )
    assert found["is_classifier"] == pytest.approx(4, rel=0.05)
    assert found["is_classifier_data"] == pytest.approx(1)


def test_sample_quality_logs_the_network_s_name_and_is_the_same_again(tmp_path, loader):
    net, found = ConvNet((1, 8, 8), 3, 4), []
    for _ in range(2):
        callback = SampleQuality(Penultimate(net), net, "net", steps=3, samples=25, batch_size=10)
        found += trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    names = {"fid_net", "fid_net_floor", "kid_net", "kid_std_net", "kid_net_floor", "is_net", "is_net_data"}
    names |= {"fid_net_start", "kid_net_start", "is_net_start"}
    assert {f"samples/{name}" for name in names} <= set(found[0])
    assert not any(name in ("samples/fid", "samples/kid", "samples/is") for name in found[0])
    assert found[0] == found[1]
    assert found[0]["samples/generated"] == 25
    assert net.training


def test_pictures_have_a_row_for_each_class(tmp_path, loader):
    module, moved = image_jem(), []

    class Spy(SGLD):
        def run(self, energy, x, **arguments):
            moved.append(getattr(energy, "keywords", {}).get("y"))
            return super().run(energy, x, **arguments)

    callback = FreshSamples(4, sampler=Spy(0.1, 0.01, 2), directory=tmp_path)
    trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    assert moved[0] is None
    assert moved[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert {p.name for p in tmp_path.glob("*.png")} == {"samples-conditional.png", "samples-unconditional.png"}


def test_pictures_need_images(tmp_path):
    with pytest.raises(ValueError, match="'support' should be a Box of images"):
        trainer(tmp_path, callbacks=[FreshSamples()]).test(jem(), batches(), verbose=False)


# Refined inputs.


def test_refinement_down_a_quadratic_energy_is_its_closed_form(tmp_path):
    """Noiseless steps on E = -logsumexp(-x^2 / 2 + (0, x)): compared with the steps written out."""

    class Bumps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([-(x + 1).square(), -(x - 1).square()], 1)

    module, box = Bumps(), Box(-9, 9, (1,))
    x = torch.tensor([[-2.0], [-0.1], [0.3], [3.0]])
    y = torch.tensor([0, 0, 0, 1])
    data = torch.utils.data.DataLoader(TensorDataset(x, y), 4)
    callback = Refinement([0, 1, 30], SGLD(0.1, 0.0))
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(ConditionalEBM(module, 2, box), data, verbose=False)

    z, energies = x.clone(), []
    for _ in range(31):
        z.requires_grad_()
        energy = -module(z).logsumexp(1)
        energies.append(energy.detach())
        z = (z - 0.1 * torch.autograd.grad(energy.sum(), z)[0]).detach()
    for k in (0, 1, 30):
        assert metrics[f"refine/energy_change_{k}"] == pytest.approx(
            float((energies[k] - energies[0]).mean()), abs=1e-5
        )
        assert metrics[f"refine/accuracy_{k}"] == 0.75
    assert metrics["refine/energy_change_0"] == 0
    assert metrics["refine/images"] == 4


def test_bad_numbers_name_themselves():
    for make, message in (
        (lambda: Robustness(limit=0), "'limit' should be positive, got 0"),
        (lambda: Robustness([-1.0]), "'eps' should be positive, got -1.0"),
        (lambda: Refinement([-1]), "'steps' should be numbers of steps, 0 or positive, got"),
        (lambda: SampleQuality(Pixels(), samples=3), "'samples' should be at least 20, got 3"),
        (lambda: FreshSamples(side=0), "'side' should be positive, got 0"),
        (lambda: PGD(-1.0), "'eps' should be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_quota_deals_the_limit_to_the_ranks():
    quota = Quota(10, world_size=3)
    taken = [len(quota.take(torch.zeros(3))[0]) for _ in range(3)]
    assert (taken, quota.seen) == ([3, 1, 0], 4)
    assert quota.full
    assert len(Quota().take(torch.zeros(7))[0]) == 7


@pytest.mark.parametrize(("limit", "offered"), [(1, 9), (4, 10), (30, 48), (48, 48), (60, 48), (1000, 10_000)])
def test_quota_is_spread_evenly_whatever_the_batches(limit, offered):
    """Exactly as many as are wanted, the first one among them, and no gap twice as long as another."""
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
def test_measurements_are_of_images_spread_over_the_test_set(tmp_path, loader, batches_run, offered):
    asked: list[Tensor] = []

    def spy(energy, x: Tensor) -> Tensor:
        asked.append(x)
        return x.flatten(1).sum(1)

    callbacks = [OODDetection(["flipped"], [spy], limit=10), Robustness([0.1], [], [], 1, limit=10)]
    t = trainer(tmp_path, callbacks=callbacks, limit_test_batches=batches_run)
    (metrics,) = t.test(image_jem(), loader, verbose=False)
    rows = [i for i in range(offered) if i * 10 % offered < 10]
    x = loader.dataset.tensors[0][rows]
    asked_for = torch.cat(asked).flatten(1)
    assert torch.equal(asked_for.unique(dim=0), torch.cat([x, x.flip(-1)]).flatten(1).unique(dim=0))
    assert metrics["ood/images"] == metrics["robust/images"] == len(rows) == 10


def test_interpolations_use_the_whole_batch(tmp_path, loader):
    """One image of a batch is asked for: the mean of it and itself would be no foreign image."""
    (metrics,) = trainer(tmp_path, callbacks=[OODDetection(["interpolated"], limit=3)]).test(
        image_jem(), loader, verbose=False
    )
    assert metrics["ood/images"] == 3
    assert metrics["ood/interpolated/auroc"] != 0.5
