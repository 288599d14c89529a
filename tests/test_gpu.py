"""Training, chains and log Z on one GPU. Without a GPU these are skipped."""

import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    HMC,
    JEM,
    MALA,
    PYLD,
    SADAJEM,
    SGLD,
    AISLogZ,
    AutoregressiveDensity,
    Box,
    ChainDiagnostics,
    ClassGaussians,
    Euclidean,
    Gaussian,
    NoiseRefresh,
    ReplayBuffer,
    ReweightedBuffer,
    ais,
)
from ebm_lightning.networks import MLP
from ebm_lightning.rng import make_generator

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
]


def loader(n: int = 256, labels: int = 3) -> DataLoader:
    generator = make_generator(0, "points")
    y = torch.arange(n) % labels
    x = torch.randn(n, 2, generator=generator) * 0.2 + (y[:, None].float() - 1) * 0.5
    return DataLoader(TensorDataset(x.clamp(-1, 1), y), 64)


def trainer(**options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="gpu", devices=1, **({"max_epochs": 2} | quiet | options))


def model(**options) -> JEM:
    sampler = options.pop("sampler", SGLD(0.01, 0.1, 5))
    chains = options.pop("chains", ReplayBuffer(128))
    return JEM(MLP(2, 3), 3, options.pop("support", Box(-1, 1, (2,))), sampler, chains, **options)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_model_trains_and_its_log_z_is_estimated(precision):
    module = model()
    fit = trainer(precision=precision, callbacks=[ChainDiagnostics(1), AISLogZ(temperatures=50, num_chains=200)])
    fit.fit(module, loader())
    assert module.chains.x.device.type == "cpu" or module.chains.x.is_cuda
    metrics = fit.test(module, loader(), verbose=False)[0]
    assert math.isfinite(metrics["ais/log_z"])
    exact = quadrature(module)
    assert metrics["ais/log_z"] == pytest.approx(exact, abs=0.05 + 5 * metrics["ais/std_err"])


def quadrature(module: JEM, n: int = 400) -> float:
    """log Z of a model on the square [-1, 1]^2, by the midpoint rule on the CPU."""
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    with torch.no_grad():
        energy = module.cpu().eval().energy(torch.cartesian_prod(axis, axis)).double()
    return float((-energy).logsumexp(0)) + 2 * math.log(2 / n)


@pytest.mark.parametrize(
    "sampler",
    [SGLD(0.01, 0.1, 5), PYLD(0.01, steps=2), MALA(0.01, 3), HMC(0.05, 2, leapfrogs=3)],
    ids=lambda s: type(s).__name__,
)
def test_every_kernel_of_points_runs(sampler):
    module = model(sampler=sampler)
    trainer().fit(module, loader())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_sharpness_aware_training_runs():
    module = SADAJEM(MLP(2, 3), 3, Box(-1, 1, (2,)), SGLD(0.01, 0.1, 5), ReplayBuffer(128))
    trainer().fit(module, loader())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_fitted_reference_runs():
    module = model(
        support=Euclidean((2,), reference=ClassGaussians()), sampler=MALA(0.05, 3), chains=ReweightedBuffer(128, 0.05)
    )
    trainer().fit(module, loader())
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert math.isfinite(module.chains.log_z)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_an_autoregressive_density_makes_x_from_its_noise(precision):
    """Mutant: TF32 in one direction."""
    box = Box(-1, 1, (3, 8, 8))
    density = AutoregressiveDensity(box, 16, bins=16, radius=3, width=32, epochs=2).cuda()
    levels = torch.randint(16, (400, 3, 8, 8), generator=make_generator(0, "levels"))
    x = (levels + torch.rand(levels.shape, generator=make_generator(0, "noise"))) / 16 * 2 - 1
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        density.fit([(x.cuda(), torch.zeros(400))], 1)
        u, log_q = density.to_noise(x.cuda())
        again, log_q_again = density.from_noise(u)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (again.cpu() - x).abs().max() < 0.02  # a level is 0.125 wide
    assert (log_q - log_q_again).abs().max() < 1e-2
    on_cpu = density.cpu().to_noise(x)[1]
    assert (log_q.cpu() - on_cpu).abs().max() < 1e-2


def test_a_model_relative_to_an_autoregressive_density_trains():
    box = Box(-1, 1, (1, 8, 8))
    reference = AutoregressiveDensity(box, 4, bins=4, radius=1, width=8, batch_size=20)
    generator = make_generator(0, "images")
    x = torch.rand(256, 1, 8, 8, generator=generator) * 2 - 1
    data = DataLoader(TensorDataset(x, torch.arange(256) % 3), 64)
    module = JEM(
        nn.Sequential(nn.Flatten(), MLP(64, 3)), 3, Box(-1, 1, (1, 8, 8), reference=reference), NoiseRefresh(steps=2),
        ReweightedBuffer(128), energy_l2=0.0,
    )  # fmt: skip
    fit = trainer(precision="bf16-mixed")
    fit.fit(module, data)
    module.cuda().eval()
    estimate = ais(module.energy, module.support, temperatures=20, num_chains=200)
    assert math.isfinite(estimate.log_z)


@pytest.mark.parametrize("support", [Gaussian(0.0, 1.0, (16,)), Box(-1, 1, (16,))], ids=["Gaussian", "Box"])
def test_log_z_agrees_with_a_closed_form(support):
    scale = torch.linspace(0.2, 0.4, 16, device="cuda")
    estimate = ais(
        lambda x: 0.5 * (x / scale).square().sum(1),
        support,
        temperatures=100,
        num_chains=500,
        generator=make_generator(0, "log z", device="cuda"),
    )
    sd = scale.double().cpu()
    exact = (sd.log() + 0.5 * math.log(2 * math.pi)).sum()
    if isinstance(support, Box):
        exact = exact + torch.special.erf(1 / (sd * math.sqrt(2))).log().sum()
    assert estimate.log_z == pytest.approx(float(exact), abs=5 * estimate.std_err + 0.02)


def test_a_resumed_run_ends_with_the_chains_of_a_run_without_a_break(tmp_path):
    whole, first, second = (model(seed=1) for _ in range(3))
    L.seed_everything(0)
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    for module in (first, second):
        module.load_state_dict(start)
    trainer(max_epochs=4).fit(whole, loader())
    fit = trainer(max_epochs=2)
    fit.fit(first, loader())
    fit.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.allclose(whole.chains.x.cpu(), second.chains.x.cpu(), atol=1e-4)


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match="label"):
        trainer().fit(model(), loader(labels=4))


def test_daily_methods_stay_on_the_device_of_the_model():
    module = model()
    trainer().fit(module, loader())
    module.cuda()
    x = next(iter(loader()))[0].cuda()
    assert module.sample(8, steps=3).is_cuda
    assert module.score(x).is_cuda
    module.threshold(loader(), keep=0.9)
    assert module.is_ood(x).is_cuda
    module.estimate_log_z(temperatures=30, num_chains=100)
    assert torch.isfinite(module.log_prob(x)).all()
