"""A guarded run in which some steps are bad.

Mutants killed: the weights are updated with a bad batch; a snapshot shares memory with the run; the optimizer, the
schedule or the chains are not restored; the newest snapshot is restored although the run was already diverging; random
numbers repeat after a rollback; the backoff changes the temperature; ranks decide independently; the step size is
reduced again when the same module is trained further.
"""

import copy
import functools
import math
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from ebm_lightning import GHMC, JEM, SGLD, ChainDiagnostics, ConditionalEBM, DivergenceGuard, ReplayBuffer
from ebm_lightning.callbacks.divergence_guard import within
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights

ROOT = Path(__file__).parent.parent.parent
NO_BOUNDS = {"tolerance": 1e9, "max_energy_gap": 1e9}


class Faulty(JEM):
    """A JEM whose positive phase is multiplied by a factor in some calls."""

    factor: dict[int, float]
    call = 0
    seen: list

    def negative_phase(self, x, y):
        self.call += 1
        self.seen.append((weights(self), self.chains.x.clone(), copy.deepcopy(self.optimizers().state_dict())))
        return super().negative_phase(x, y)

    def positive_phase(self, logits, x, y):
        return super().positive_phase(logits, x, y) * self.factor.get(self.call, 1.0)


def faulty(factor, **arguments):
    torch.manual_seed(0)
    defaults = {"lr_scheduler": functools.partial(StepLR, step_size=1, gamma=0.9), "seed": 0}
    module = Faulty(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 3), ReplayBuffer(30), **(defaults | arguments))
    module.factor, module.seen = factor, []
    return module


def test_a_good_run_is_unchanged(tmp_path):
    runs = []
    for callbacks in ([], [DivergenceGuard(2), ChainDiagnostics(1)]):
        module = jem()
        trainer(tmp_path, max_epochs=4, callbacks=callbacks).fit(module, batches())
        runs.append((weights(module), module.chains.x))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert callbacks[0].rollbacks == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_bad_step_is_undone_and_never_trained_on(tmp_path, bad):
    """Snapshots at steps 0, 3 and 6. Call 8 is bad, after 7 steps: the run is rolled back to step 3."""
    module, guard = faulty({8: bad}), DivergenceGuard(3, **({} if bad == 1e30 else NO_BOUNDS), window=3)
    module.log = lambda *args, **kwargs: None
    t = trainer(tmp_path, max_steps=9, max_epochs=-1, callbacks=[guard])
    with pytest.warns(UserWarning, match="Training diverged at step 7.*Rolled back to the state of step 3"):
        t.fit(module, batches())
    assert guard.rollbacks == 1
    before, after = module.seen[3], module.seen[8]  # call 4 from step 3, and the first call after the rollback
    assert torch.equal(before[0], after[0])
    assert torch.isfinite(weights(module)).all()
    moved = (before[1] != after[1]).flatten(1).any(1).sum()
    assert 0 < moved <= 8, "the chains of the snapshot, except for the reinitialized batch"
    assert str(before[2]["state"]) == str(after[2]["state"])
    rates = [state["param_groups"][0]["lr"] for _, _, state in module.seen]
    assert rates[8] == pytest.approx(rates[3] * 0.9), "restored from step 3, then stepped once"


def test_a_wide_gap_is_a_divergence(tmp_path):
    module, guard = jem(), DivergenceGuard(max_energy_gap=1e-9, max_rollbacks=2)
    with (
        pytest.warns(UserWarning, match=r"energy gap is .* nats, over 1e-09"),
        pytest.raises(RuntimeError, match=r"diverged again at step 2 .*after 2 rollbacks.*Raise the sampler's"),
    ):
        trainer(tmp_path, callbacks=[guard]).fit(module, batches())


def test_repeated_rollbacks_use_older_snapshots(tmp_path):
    module, guard = faulty({8: math.nan, 9: math.nan}), DivergenceGuard(3, **NO_BOUNDS)
    with pytest.warns(UserWarning, match="state of step"):
        trainer(tmp_path, max_steps=10, max_epochs=-1, callbacks=[guard]).fit(module, batches())
    assert guard.rollbacks == 2
    assert torch.equal(module.seen[9][0], module.seen[0][0]), "the second rollback restores step 0"


def test_backoff_keeps_the_temperature_and_survives_a_resume(tmp_path):
    module, guard = faulty({2: math.nan}), DivergenceGuard(backoff=0.25)
    t = trainer(tmp_path, callbacks=[guard])
    with pytest.warns(UserWarning, match="diverged"):
        t.fit(module, batches())
    assert module.sampler.step_size == pytest.approx(0.025)
    assert module.sampler.implied_temperature == pytest.approx(SGLD(0.1, 0.01).implied_temperature)
    t.save_checkpoint(tmp_path / "a.ckpt")
    again, guard = faulty({}), DivergenceGuard(backoff=0.25)
    trainer(tmp_path, max_epochs=2, callbacks=[guard]).fit(
        again, batches(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert guard.rollbacks == 1
    assert again.sampler.step_size == pytest.approx(0.025)
    trainer(tmp_path, callbacks=[guard]).fit(again, batches())
    assert again.sampler.step_size == pytest.approx(0.025), "not reduced again"


def test_a_scaled_step_targets_the_same_distribution():
    assert SGLD(0.4, temperature=2.0).scale_step(0.5) == SGLD(0.2, temperature=2.0)
    assert SGLD(0.4, 0.1).scale_step(0.25) == SGLD(0.1, 0.05)
    assert GHMC(0.4).scale_step(0.5) == GHMC(0.2)


def test_a_rollback_reseeds_the_sampler():
    module = jem()
    module.start_chains()
    states = [module.generator.get_state()]
    for attempt in (1, 2):
        module.restart_chains(attempt)
        states.append(module.generator.get_state())
    assert len({bytes(state.tolist()) for state in states}) == 3


def test_without_the_guard_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = faulty({2: math.nan})
    guarded = trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[DivergenceGuard()])
    with pytest.warns(UserWarning, match="diverged"):
        guarded.fit(module, batches())
    assert module.halts_on_divergence
    module.call = 0
    with pytest.raises(RuntimeError, match="not finite"):
        trainer(tmp_path).fit(module, batches())


def test_a_conditional_model_is_guarded(tmp_path):
    class Broken(ConditionalEBM):
        def conditional_loss(self, logits, y):
            return super().conditional_loss(logits, y) * (math.nan if self.global_step == 1 else 1)

    module = Broken(MLP(4, 3, (8,)), 3)
    with pytest.warns(UserWarning, match="the (loss|gradient norm) is nan"):
        trainer(tmp_path, callbacks=[DivergenceGuard()]).fit(module, batches())
    assert torch.isfinite(weights(module)).all()


def test_bounds_follow_the_run():
    calm = deque([1.0, 1.1, 0.9, 1.0], maxlen=4)
    assert within(1.2, calm, 30, log=False)
    assert not within(10.0, calm, 30, log=False)
    assert within(15.0, calm, 30, log=True)
    assert not within(1e3, calm, 30, log=True)
    assert within(1e9, deque([1.0], maxlen=4), 30, log=True), "no bounds until the window is full"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "'every_n_steps' should be at least 1"),
        ({"max_rollbacks": 0}, "'max_rollbacks' should be at least 1"),
        ({"backoff": 0.0}, r"'backoff' should be in \(0, 1\]"),
        ({"tolerance": 0.0}, "'tolerance' should be positive"),
        ({"max_energy_gap": 0.0}, "'max_energy_gap' should be positive or None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DivergenceGuard(**arguments)


@pytest.mark.slow
def test_two_ranks_roll_back_together(tmp_path):
    command = [sys.executable, "-m", "tests.callbacks.test_divergence_guard", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert a["rollbacks"] == b["rollbacks"] == 1
    assert torch.equal(a["weights"], b["weights"])
    assert torch.isfinite(a["weights"]).all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sick, watch = faulty({}), DivergenceGuard(2, max_energy_gap=1e3)
    two = trainer(Path(sys.argv[1]), devices=2, strategy="ddp", max_steps=6, max_epochs=-1, callbacks=[watch])
    if int(os.environ.get("LOCAL_RANK", 0)) == 1:
        watch._limit = lambda module: -1.0 if module.global_step == 3 else 1e3  # bad on one rank only
    two.fit(sick, batches(48))
    state = {"rollbacks": watch.rollbacks, "weights": weights(sick)}
    torch.save(state, Path(sys.argv[1]) / f"{two.global_rank}.pt")
