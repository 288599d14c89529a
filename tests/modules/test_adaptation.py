"""Adaptation in a JEM: the step size is part of the model's state, and changes in training alone.

Mutants that these tests kill: a step scale outside of the state, in float32, or not in the averaged weights; a sampler
without the scale; adaptation in validation or in 'sample'; a scale that outlives its sampler; repeats that are not
recorded, or whose points are not stored; repeats from the points of the buffer; the limit of E(x) for chains of
E(x, y).
"""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from ebm_lightning import (
    JEM,
    MALA,
    Adaptation,
    ChainDiagnostics,
    ClassGaussians,
    Euclidean,
    ReferenceJumps,
    ReplayBuffer,
)
from ebm_lightning.data import Rings
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.samplers import State
from tests.helpers import BOX, batches, jem, trainer
from tests.resume.runs import Rows, final, noisy, same

FAST = Adaptation(target=0.6, rate=0.3)


def adapted(**arguments) -> JEM:
    return jem(**{"sampler": MALA(0.05, 2), "adaptation": FAST, **arguments})


def test_the_step_size_follows_the_acceptance(tmp_path):
    """The scale is the product of the factors of all steps, in which the chains moved with the scale so far."""
    seen: list[tuple[float, float]] = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            self.before = pl_module.sampler.step_size

        def on_train_batch_end(self, trainer, pl_module, *_):
            acceptance = float(pl_module.chain_step.state.accepted.float().mean())
            seen.append((acceptance, pl_module.sampler.step_size / self.before))

    module = adapted()
    trainer(tmp_path, max_epochs=3, callbacks=[Spy()]).fit(module, batches())
    assert len(seen) == 9
    for acceptance, factor in seen:
        assert factor == pytest.approx(math.exp(0.3 * (acceptance - 0.6)), rel=1e-9)
    assert module.adapted_sampler.step_scale.item() == pytest.approx(math.prod(factor for _, factor in seen), rel=1e-9)
    assert module.sampler == MALA(0.05 * module.adapted_sampler.step_scale.item(), 2)


class Ramp(nn.Module):
    """E(x, y) = -(5 + 3 y) x_0."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * torch.stack([(5 + 3 * y) * x[:, 0] for y in range(3)], 1)


class Climb(MALA):
    """Moves the first component up by 0.1, and accepts."""

    def transitions(self, energy, x, support, generator):
        start = energy(x)
        x = torch.cat([x[:, :1] + 0.1, x[:, 1:]], 1)
        yield State(x, start, torch.zeros_like(x), torch.ones(len(x), dtype=torch.bool))


@pytest.mark.parametrize("of_class", [False, True])
@pytest.mark.parametrize(("max_repeats", "expected"), [(8, 3), (2, 2)])
def test_chains_that_are_behind_run_again(of_class, max_repeats, expected):
    """Data at 0 and chains at -0.35 that move by 0.1: only after the fourth move is their energy below the limit."""
    weights = {"generative_weight": 0.0, "class_conditional_weight": 1.0} if of_class else {}
    adaptation = Adaptation(rate=0.0, max_gap=0.3, max_repeats=max_repeats)
    module = jem(Ramp(), sampler=Climb(0.1, 1), adaptation=adaptation, **weights)
    module.start_chains()
    buffer = module.class_chains if of_class else module.chains
    buffer.x[:] = -0.35
    u, y = torch.zeros(6, 4), torch.full((6,), 2)
    x = module.negatives(u, y if of_class else None)
    assert module.chain_step.repeats == expected
    assert torch.allclose(x[:, 0], torch.tensor(-0.35 + 0.1 * (expected + 1)))
    assert torch.equal(buffer.x[module.chain_step.index], x)
    assert (buffer.age[module.chain_step.index] == 1).all()


class Behind(MALA):
    """Its chains stay at the wall where the energy of Ramp is highest."""

    def transitions(self, energy, x, support, generator):
        for state in super().transitions(energy, x, support, generator):
            yield state._replace(x=torch.full_like(state.x, -1.0))


def test_repeats_are_logged(tmp_path):
    for max_gap, expected in ((1.0, {3.0}), (1e4, {0.0})):
        module = jem(Ramp(), sampler=Behind(0.1, 2), adaptation=Adaptation(max_gap=max_gap, max_repeats=3))
        trainer(tmp_path, logger=(rows := Rows()), callbacks=[ChainDiagnostics(1)]).fit(module, batches())
        assert {value for (name, _), value in rows.rows.items() if name == "chains/repeats"} == expected
    trainer(tmp_path, logger=(rows := Rows()), callbacks=[ChainDiagnostics(1)]).fit(jem(), batches())
    assert "chains/repeats" not in {name for name, _ in rows.rows}


def test_a_sampler_without_acceptance_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'sampler' should accept or reject steps for an Adaptation"):
        trainer(tmp_path).fit(jem(adaptation=Adaptation()), batches())


def test_nothing_changes_outside_of_training(tmp_path):
    module, t = adapted(), trainer(tmp_path, callbacks=[ChainDiagnostics(1)])
    t.fit(module, batches())
    scale = module.adapted_sampler.step_scale.clone()
    assert scale != 1
    module.sample(20)
    module.sample(20, sampler=MALA(0.01, 3), steps=2)
    t.validate(module, batches(), verbose=False)
    t.test(module, batches(), verbose=False)
    t.predict(module, batches())
    assert torch.equal(module.adapted_sampler.step_scale, scale)


def test_a_new_sampler_has_its_own_step_size(tmp_path):
    module = adapted()
    trainer(tmp_path).fit(module, batches())
    module.sampler = MALA(0.2, 4)
    assert module.adapted_sampler.step_scale == 1
    assert module.sampler == MALA(0.2, 4)
    module.restart_chains(1, factor=0.5)
    assert module.sampler.step_size == pytest.approx(0.1)
    assert jem().adapted_sampler.step_scale is None
    assert "adapted_sampler.step_scale" not in jem().state_dict()


def test_a_checkpoint_has_the_adapted_step_size(tmp_path):
    module, t = adapted(), trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert again.sampler == module.sampler != MALA(0.05, 2)
    assert again.adapted_sampler.adaptation == FAST
    assert again.adapted_sampler.step_scale.dtype == torch.float64
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(*(m.eval().sample(5, generator=g) for m, g in zip((again, module), generators, strict=True)))
    assert again.hparams["sampler"]["init_args"]["step_size"] == 0.05
    assert again.hparams["adaptation"]["init_args"] == {"target": 0.6, "rate": 0.3, "max_gap": None, "max_repeats": 8}


def fit_or_resume(folder: Path, checkpoint: Path | None = None) -> JEM:
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    adaptation = Adaptation(rate=0.3, max_gap=0.05, max_repeats=2)
    module = noisy(sampler=ReferenceJumps(MALA(0.5, 2)), adaptation=adaptation)
    callbacks: list[L.Callback] = [EMAWeightAveraging(decay=0.5)]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3)
    t.fit(module, Rings(size=64, batch_size=16), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_ends_bit_equal(tmp_path):
    """Chains of p(x) and p(x|y) that run again at times, averaged weights, within the first and the last epoch."""
    whole = fit_or_resume(tmp_path)
    for step in (1, 4, 10):
        again = fit_or_resume(tmp_path, tmp_path / f"step={step}.ckpt")
        assert not same(final(again), final(whole)), step
        assert torch.equal(again.adapted_sampler.step_scale, whole.adapted_sampler.step_scale)
        assert again.sampler == whole.sampler


def test_averaged_weights_have_the_averaged_step_size(tmp_path):
    """The mean of the scales after each step, by which the model that is kept is sampled."""
    scales: list[float] = []

    class Spy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            scales.append(float(pl_module.adapted_sampler.step_scale))

    module = adapted()
    trainer(tmp_path, max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5), Spy()]).fit(module, batches())
    expected = scales[0]
    for scale in scales[1:]:
        expected = 0.5 * expected + 0.5 * scale
    assert min(scales) < module.adapted_sampler.step_scale.item() < max(scales)
    assert module.adapted_sampler.step_scale.item() == pytest.approx(expected, rel=0.1)
    module.load_state_dict(module.state_dict())


@pytest.mark.parametrize("weights", [{}, {"class_conditional_weight": 1.0}, {"joint_weight": 1.0}], ids=str)
def test_reference_jumps_are_adapted(weights, tmp_path):
    module = adapted(
        sampler=ReferenceJumps(MALA(0.05, 2), 2),
        support=Euclidean((4,), reference=ClassGaussians(1e-2)),
        chains=ReplayBuffer(30, reinit_prob=0.0),
        **weights,
    )
    trainer(tmp_path, max_epochs=2).fit(module, batches())
    assert module.sampler.step_size > 0.05
    assert module.sample(6, torch.arange(6) % 3).isfinite().all()


YAML = """
model:
  classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 4, num_classes: 3}}
  num_classes: 3
  support: {class_path: ebm_lightning.Box, init_args: {low: -1, high: 1, shape: [4]}}
  sampler:
    class_path: ebm_lightning.ReferenceJumps
    init_args: {kernel: {class_path: ebm_lightning.MALA, init_args: {step_size: 0.3, steps: 4}}, cycles: 2}
  adaptation: %s
"""


@pytest.mark.filterwarnings("ignore::UserWarning")  # jsonargparse's, of what Lightning calls
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_config_builds_it(wrapped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = "{target: 0.7, max_gap: 6.0}"
    given = f"{{class_path: ebm_lightning.Adaptation, init_args: {plain}}}" if wrapped else plain
    Path("model.yaml").write_text(YAML % given)
    off = {"logger": False, "enable_checkpointing": False}
    monkeypatch.setattr("sys.argv", ["train", "--config", "model.yaml"])
    module = LightningCLI(JEM, run=False, trainer_defaults=off, seed_everything_default=False).model
    assert module.adapted_sampler.adaptation == Adaptation(0.7, max_gap=6.0)
    assert module.sampler == ReferenceJumps(MALA(0.3, 4), 2)
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint("m.ckpt")
    again = load_model("m.ckpt")
    assert (again.adapted_sampler.adaptation, again.sampler, again.support) == (
        module.adapted_sampler.adaptation,
        module.sampler,
        BOX,
    )
    assert again.adapted_sampler.step_scale != 1
