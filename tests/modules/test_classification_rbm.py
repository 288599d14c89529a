"""The classification RBM against sums over all its states: logits, Gibbs kernel, gradients and training."""

import functools
import itertools
import re

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    SGLD,
    AISLogZ,
    Binary,
    BlockGibbs,
    Box,
    Calibration,
    ClassificationRBM,
    DataInit,
    Gaussian,
    JointEnergy,
    OODDetection,
    ReplayBuffer,
    SampleGrid,
    SupportInit,
    exact_log_z,
)
from ebm_lightning.networks import MLP
from ebm_lightning.partition.enumeration import binary_states, sweep_matrix
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers.gibbs import sweep
from tests.helpers import trainer, weights

V, H, K = 5, 4, 3
STATES = torch.cat(list(binary_states(V)))
HIDDEN = torch.cat(list(binary_states(H)))


def rbm(scale: float = 1.0, support: object = None, classes: int = K) -> JointEnergy:
    """With weights so large that units depend on each other and p(x) is far from uniform."""
    support = support or Binary((V,))
    net = RBMLogits(V, H, classes, support)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=scale)
    return JointEnergy(net.requires_grad_(False), support)


def energies(net: RBMLogits) -> Tensor:
    """E(x, y, h) term by term, shape (2^V, K, 2^H)."""
    x, h, y = STATES[:, None, None], HIDDEN[None, None], torch.eye(net.num_classes)[None, :, None]
    interaction = torch.einsum("...v,...h,hv->...", x, h, net.weight)
    labels = torch.einsum("...h,...k,hk->...", h, y, net.class_weight)
    return -(interaction + labels + x @ net.visible_bias + h @ net.hidden_bias + y @ net.class_bias)


def test_logits_sum_out_the_hidden_units(seed):
    joint = rbm()
    assert torch.allclose(joint.logits(STATES), (-energies(joint.classifier)).logsumexp(2), atol=1e-4)


def test_log_z_sums_the_smaller_layer(seed):
    joint = rbm()
    full = -energies(joint.classifier).double()
    exact = exact_log_z(joint, joint.support)
    assert exact.log_z == pytest.approx(float(full.flatten().logsumexp(0)), abs=1e-5)
    assert torch.allclose(exact.per_class, full.logsumexp((0, 2)), atol=1e-5)
    wide = JointEnergy(RBMLogits(3, 6, 2), Binary((3,)))  # the visible layer is smaller
    states = torch.cat(list(binary_states(3)))
    with torch.no_grad():
        assert exact_log_z(wide, wide.support).log_z == pytest.approx(float((-wide(states)).logsumexp(0)), abs=1e-5)


def exact_samples(joint: JointEnergy, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Independent samples of p(x, y) from the table of all states."""
    p = joint.logits(STATES).detach().double().flatten().softmax(0)
    cell = torch.multinomial(p, n, replacement=True, generator=generator)
    return STATES[cell // K], cell % K


def table_z(cells: Tensor, p: Tensor, n: int) -> float:
    """The largest z-score of the counts of all cells, if they are multinomial with probabilities p."""
    counts = torch.bincount(cells, minlength=len(p)).double()
    likely = n * p > 20  # where the count is close to normal
    return float(((counts - n * p) / (n * p * (1 - p)).sqrt())[likely].abs().max())


def code(x: Tensor) -> Tensor:
    return (x.long() * 2 ** torch.arange(V)).sum(1)


def test_block_gibbs_leaves_exact_samples_exact(seed):
    """Kills: h given x, y without U or without its bias; y given h without d; a wrong sign of W; y never resampled;
    h or x thresholded or replaced by its mean."""
    joint, generator, n = rbm(), make_generator(seed, "gibbs"), 200_000
    p = joint.logits(STATES).double().flatten().softmax(0)
    x, y = exact_samples(joint, n, generator)
    assert table_z(code(x) * K + y, p, n) < 5
    for _ in range(2):
        x, y = sweep(joint.classifier, x, y, generator)
    assert table_z(code(x) * K + y, p, n) < 5


@pytest.mark.parametrize("label", [None, 1])
def test_block_gibbs_targets_p_x_or_p_x_given_y(label, seed):
    """From uniform noise, in 40 sweeps. Kills: labels resampled in p(x|y), or kept in p(x)."""
    joint, n = rbm(0.7), 100_000
    logits = joint.logits(STATES).double()
    p = (logits.logsumexp(1) if label is None else logits[:, label]).softmax(0)
    energy = joint if label is None else functools.partial(joint, y=torch.full((n,), label))
    generator = make_generator(seed, "chains")
    x = BlockGibbs(40)(energy, joint.support.sample(n, generator=generator), generator=generator)
    assert table_z(code(x), p, n) < 5


def test_states_have_the_energy_before_each_sweep_and_global_randomness_is_not_used(seed):
    joint, before = rbm(), torch.get_rng_state()
    states = list(BlockGibbs(3).trajectory(joint, STATES, generator=make_generator(0)))
    assert torch.equal(states[0].energy, joint(STATES))
    assert torch.equal(states[2].energy, joint(states[1].x))
    assert torch.equal(torch.get_rng_state(), before)


GAUSS = Gaussian([0.5, -1.0, 0.0, 2.0, 1.0], [1.0, 0.5, 2.0, 1.0, 1.5], (V,))


def mixture(joint: JointEnergy) -> tuple[Tensor, Tensor]:
    """log weights (2^H, K) and means (2^H, V) of the Gaussian mixture that is equal to the Gaussian-Bernoulli RBM."""
    net = joint.classifier
    return net.log_sum_visible(HIDDEN).double(), GAUSS.destandardize(net.visible_fields(HIDDEN)).double()


def test_a_gaussian_rbm_is_a_mixture_of_gaussians(seed):
    joint = rbm(0.5, GAUSS)
    log_w, means = mixture(joint)
    x = torch.randn(50, V, dtype=torch.float64) * 2
    std = torch.as_tensor(GAUSS.std, dtype=torch.float64)
    normal = torch.distributions.Normal(means, std).log_prob(x[:, None]).sum(2)
    expected = (log_w[None] + normal[:, :, None]).logsumexp(1)
    got = joint.logits(x).double() + GAUSS.log_q(x)[:, None]
    assert torch.allclose(got, expected, atol=1e-4)
    assert exact_log_z(joint, GAUSS).log_z == pytest.approx(float(log_w.flatten().logsumexp(0)), abs=1e-6)


def test_gaussian_block_gibbs_has_the_moments_of_the_mixture(seed):
    """Kills: noise or mean not scaled by std, no bias, x not standardized."""
    joint, n, generator = rbm(0.4, GAUSS), 100_000, make_generator(seed, "gauss")
    log_w, means = mixture(joint)
    w = log_w.logsumexp(1).softmax(0)
    x = BlockGibbs(40)(joint, GAUSS.sample(n, generator=generator), generator=generator).double()
    std = torch.as_tensor(GAUSS.std, dtype=torch.float64)
    for i in range(V):
        mean = float(w @ means[:, i])
        square = float(w @ means[:, i] ** 2) + float(std[i]) ** 2
        for values, expected in ((x[:, i], mean), (x[:, i] ** 2, square)):
            assert float((values.mean() - expected).abs() / (values.std() / n**0.5)) < 5


# Gradients.


def module(scale: float = 1.0, **arguments: object) -> ClassificationRBM:
    torch.manual_seed(3)
    made = ClassificationRBM(V, H, K, **{"seed": 0, **arguments})
    for p in made.rbm.parameters():
        torch.nn.init.normal_(p, std=scale)
    made.start_chains()
    return made


def generative_term(made: ClassificationRBM, x: Tensor, y: Tensor) -> Tensor:
    return made.loss_terms(x, y)["gen"][1]


def gradient(made: ClassificationRBM, x: Tensor, y: Tensor) -> Tensor:
    made.zero_grad()
    generative_term(made, x, y).backward()
    return torch.cat([p.grad.flatten() for p in made.rbm.parameters()])


WEIGHTS = ("generative_weight", "joint_weight", "class_conditional_weight")


@pytest.mark.parametrize("weight", WEIGHTS)
def test_exact_gradient_makes_the_loss_the_likelihood(weight, seed):
    made = module(**dict.fromkeys(WEIGHTS, 0.0) | {weight: 1.0}, exact_gradient=True)
    x, y = STATES[:20], torch.arange(20) % K
    with torch.no_grad():
        p = made.energy.logits(STATES).double()
        logits = made.energy.logits(x).double()
    log_z = {"class_conditional_weight": p.logsumexp(0)[y]}.get(weight, p.flatten().logsumexp(0))
    log_w = logits.logsumexp(1) if weight == "generative_weight" else logits.gather(1, y[:, None])[:, 0]
    assert generative_term(made, x, y).item() == pytest.approx(float((log_z - log_w).mean()), abs=1e-4)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gradient_from_exact_chains_is_the_exact_gradient(weight, seed):
    """Chains that start at exact samples stay exact. Kills: half the gradient, wrong labels, a wrong sign."""
    settings = dict.fromkeys(WEIGHTS, 0.0) | {weight: 1.0}
    made, exact, generator = module(**settings), module(**settings, exact_gradient=True), make_generator(seed, "exact")
    made.generator = generator
    errors = []
    for _ in range(60):
        x, y = exact_samples(made.energy, 400, generator)
        errors.append(gradient(made, x, y) - gradient(exact, x, y))
    errors = torch.stack(errors)
    std_err = errors.std(0) / len(errors) ** 0.5
    z = errors.mean(0) / (std_err + 1e-6)  # given the label, the gradient of d is 0 up to rounding
    assert float(z.abs().max()) < 5


def test_powers_of_the_sweep_matrix_are_the_distribution_of_chains(seed):
    """Kills: a transposed matrix, no labels, layers in the other order."""
    joint, n = rbm(), 200_000
    matrix = sweep_matrix(joint.classifier)
    p = joint.logits(STATES).detach().double().flatten().softmax(0)
    assert torch.allclose(matrix.sum(1), torch.ones(len(p), dtype=torch.float64))
    assert torch.allclose(p @ matrix, p, atol=1e-7)
    generator, start = make_generator(seed, "sweeps"), 17
    x, y = STATES[start // K].expand(n, V), torch.full((n,), start % K)
    for _ in range(2):
        x, y = sweep(joint.classifier, x, y, generator)
    assert table_z(code(x) * K + y, (matrix @ matrix)[start], n) < 5


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cd_k_has_the_bias_of_the_exact_distribution_after_k_sweeps(k, seed):
    """Kills: a wrong number of sweeps, labels of the data kept, chains that do not start at the data."""
    x, y = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]), torch.tensor([0, 1])
    settings = {"conditional_weight": 0.0, "joint_weight": 1.0, "scale": 2.0}
    made, exact = module(**settings, sampler=BlockGibbs(k)), module(**settings, exact_gradient=True)
    likelihood, bias = gradient(exact, x, y), []
    with torch.no_grad():
        data = (STATES[:, None] == x).all(2).double().mean(1)
        p = (data[:, None] * made(STATES).double().softmax(1)).flatten()
    for _ in range(k):
        p = p @ sweep_matrix(made.rbm)
        made.zero_grad()
        negative = (p.view(-1, K).sum(1).float() * made.energy(STATES)).sum()
        (made.energy(x, y).mean() - negative).backward()
        expected = torch.cat([p.grad.flatten() for p in made.rbm.parameters()])
        bias.append(float((expected - likelihood).norm()))
    assert all(later < earlier for earlier, later in itertools.pairwise(bias))
    made.generator = make_generator(seed, "cd", k)
    found = torch.stack([gradient(made, x.repeat(200, 1), y.repeat(200)) for _ in range(60)])
    z = (found.mean(0) - expected) / (found.std(0) / len(found) ** 0.5 + 1e-6)
    assert float(z.abs().max()) < 5


# Training.


def binary_batches(n: int = 24, shape: tuple[int, ...] = (V,)) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(n, *shape, generator=generator) < 0.3).float()
    return DataLoader(TensorDataset(x, torch.arange(n) % K), 8)


@pytest.mark.parametrize("chains", [DataInit(), ReplayBuffer(30), SupportInit()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("support", [Binary((V,)), Gaussian(0.0, 1.0, (V,))], ids=lambda s: type(s).__name__)
def test_every_kind_of_chains_trains_every_support(chains, support, tmp_path):
    weights_ = dict.fromkeys(WEIGHTS, 0.5)
    made = ClassificationRBM(V, H, K, support, BlockGibbs(2), chains, seed=0, **weights_)
    before, t = weights(made), trainer(tmp_path)
    t.fit(made, binary_batches())
    assert torch.isfinite(weights(made)).all()
    assert not torch.equal(weights(made), before)
    assert {"train/loss_clf", "train/loss_gen", "train/energy_pos", "train/energy_neg"} <= set(t.callback_metrics)


def test_the_exact_gradient_learns_the_data(tmp_path):
    made = ClassificationRBM(
        V, H, K, joint_weight=1.0, exact_gradient=True, optimizer=functools.partial(torch.optim.Adam, lr=0.05)
    )
    t, loader = trainer(tmp_path, max_epochs=60), binary_batches()
    t.fit(made, loader)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        nll = float(made.energy(x, y).mean()) + exact_log_z(made.energy, made.support).log_z
    assert nll < V * 0.6109 + 1.0986, "better than independent pixels (of entropy 0.6109 each) and a uniform label"


def test_callbacks_and_checkpoints(tmp_path, seed):
    square = Binary((1, 4, 4))
    made = ClassificationRBM(16, 6, K, square, chains=ReplayBuffer(30), seed=0)
    loader = binary_batches(shape=(1, 4, 4))
    t = trainer(tmp_path, callbacks=[Calibration(), OODDetection(), SampleGrid(1), AISLogZ(1, 50, 200)])
    t.fit(made, loader, loader)
    (metrics,) = t.test(made, loader, verbose=False)
    assert {"test/ece", "ood/inverted/auroc", "test/accuracy", "ais/prior_2"} <= set(metrics)
    truth = exact_log_z(made.energy, square).log_z
    assert abs(metrics["ais/log_z"] - truth) < 5 * metrics["ais/std_err"] + 1e-3
    assert list(tmp_path.glob("samples-chains-step-*.png"))
    t.save_checkpoint(tmp_path / "model.ckpt")
    again = ClassificationRBM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(weights(again), weights(made))
    assert again.support == square
    assert isinstance(again.sampler, BlockGibbs)
    assert torch.allclose(again.rbm.data_mean, loader.dataset.tensors[0].flatten(1).mean(0), atol=1e-6)
    assert again.rbm.class_counts.tolist() == [8.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: BlockGibbs(0), "'steps' should be at least 1, got 0"),
        (lambda: ClassificationRBM(V, 0, K), "'num_hidden' should be at least 1, got 0"),
        (lambda: ClassificationRBM(V, H, K, Box(0, 1, (V,))), "'support' should be Binary or Gaussian"),
        (lambda: ClassificationRBM(V, H, K, Binary((6,))), "'num_visible' should be the size of 'support' (6,), 6,"),
        (lambda: ClassificationRBM(784, 500, K, exact_gradient=True), "'units' should be at most 20, got 500"),
        (lambda: ClassificationRBM(V, H, K).check_batch(torch.rand(2, V)), "'x' should be 0 or 1, got values in [0."),
        (lambda: ClassificationRBM(V, H, K).check_batch(torch.rand(2, V)), "torch.bernoulli(x)"),
        (lambda: ClassificationRBM(V, H, K).check_batch(-torch.ones(2, V)), "use Gaussian(mean, std, shape)"),
        (lambda: BlockGibbs()(JointEnergy(MLP(V, K), Binary((V,))), STATES), "'energy' should be that of an RBM"),
        (lambda: BlockGibbs()(JointEnergy(RBMLogits(V, H, K), Binary((V,)), 2.0), STATES), "'temperature' should be 1"),
        (lambda: SGLD()(rbm(), STATES, support=Binary((V,))), "'sampler' should be BlockGibbs on Binary"),
    ],
)
def test_bad_arguments(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action()


def test_gray_pixels_as_probabilities(seed):
    gray = Binary((V,), probabilities=True)
    x = torch.rand(10, V)
    gray.check(x)
    assert gray.log_q(x).eq(0).all()
    assert Binary((V,)).log_q(x).eq(-torch.inf).all()
    with pytest.raises(ValueError, match=r"'x' should be in \[0, 1\], got values"):
        gray.check(x + 1)
