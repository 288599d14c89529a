"""Gaussians of classes as the reference density of a model: fitted once, in u, and part of the model's state.

Mutants that these tests kill: a reference outside of the state, or of the averaged weights; a fit on resume, at
validation, or to x in place of u; one pass in place of several, or passes with the same noise; two fits of one object;
ranks that fit their own part; log q without its normalization.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

from ebm_lightning import (
    JEM,
    MALA,
    Adaptation,
    Box,
    ClassGaussians,
    ConditionalEBM,
    Euclidean,
    ReferenceJumps,
    ReplayBuffer,
    ais,
)
from ebm_lightning.coordinates import Compose, NormalScores, Quantiles
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.evaluation.inputs import initial_density
from ebm_lightning.networks import SumLogits
from ebm_lightning.partition import quadrature
from tests.helpers import trainer
from tests.modules.coordinates_models import BOX, Batches, Data, net, points, seeded
from tests.resume.runs import final, same

ROOT = Path(__file__).parent.parent.parent


class Counted(ClassGaussians):
    """Counts its fits, and records what it is fitted to."""

    def fit(self, batches, *arguments) -> None:
        self.seen = [*getattr(self, "seen", []), list(batches)]
        super().fit(self.seen[-1], *arguments)


def copula() -> Compose:
    return Compose([Quantiles(BOX, 8), NormalScores((2,))])


def model(reference: ClassGaussians | None = None, classifier: nn.Module | None = None, **arguments) -> JEM:
    reference = ClassGaussians(1e-2, 0.3, passes=2) if reference is None else reference
    settings = {
        "support": Euclidean((2,), reference=reference),
        "sampler": ReferenceJumps(MALA(0.3, 2)),
        "chains": ReplayBuffer(60, reinit_prob=0.0),
        "coordinates": copula(),
        "adaptation": Adaptation(rate=0.2),
        "energy_l2": 0.0,
        "seed": 0,
    }
    return JEM(net() if classifier is None else classifier, 3, **(settings | arguments))


def reference(module: ConditionalEBM) -> ClassGaussians:
    assert module.energy.reference is module.support.reference
    return module.support.reference


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.ones(len(x), 3)


@pytest.mark.parametrize("kind", [JEM, ConditionalEBM])
def test_the_fit_is_to_the_training_data_in_coordinates_once(kind, tmp_path):
    """Of one object that is the reference, a classifier and the initial distribution."""
    given, data = Counted(1e-2), Data()
    classifier = SumLogits([given, net()])
    if kind is JEM:
        module = model(given, classifier, chains=ReplayBuffer(60, 0.1, given))
    else:
        module = ConditionalEBM(classifier, 3, Euclidean((2,), reference=given), coordinates=copula())
    trainer(tmp_path).fit(module, data)
    trainer(tmp_path).fit(module, data)
    trainer(tmp_path).validate(module, data, verbose=False)
    assert len(given.seen) == 1
    expected = ClassGaussians(1e-2)
    expected.fit([(copula().fit(data.x)(data.x), data.train.tensors[1])], 3)
    assert torch.allclose(given.means, expected.means, atol=1e-5)
    assert torch.allclose(given.factors, expected.factors, atol=1e-5)


def test_each_pass_has_noise_of_its_own(tmp_path):
    """And the same images: sums over three passes of 66 rows."""
    given, data = Counted(1e-2, passes=3), Data(noisy=True)
    trainer(tmp_path, limit_train_batches=0).fit(model(given), data)
    (batches,) = given.seen
    x, y = (torch.cat(part).split(66) for part in zip(*batches, strict=True))
    assert len(x) == 3
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2])
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[1], x[2])
    assert given.counts.sum() == 198
    again = Counted(1e-2, passes=3)
    L.seed_everything(77, verbose=False)
    trainer(tmp_path, limit_train_batches=0).fit(model(again), Data(noisy=True))
    assert torch.equal(again.factors, given.factors), "the noise does not depend on the seed of the run"


@pytest.mark.parametrize("of", ["reference", "classifier"])
def test_a_checkpoint_has_the_fit(of, tmp_path):
    data, x = Data(), points(20, seeded()).tensors[0]
    in_classifier = {"classifier": SumLogits([ClassGaussians(1e-2), net()]), "support": None}
    module = model(**({} if of == "reference" else in_classifier))
    t = trainer(tmp_path)
    t.fit(module, data)
    t.save_checkpoint(tmp_path / "m.ckpt")
    for load in (load_model, lambda path: JEM.load_from_checkpoint(path, weights_only=True).eval()):
        again = load(tmp_path / "m.ckpt")
        assert torch.equal(again.energy(x), module.eval().energy(x))
        assert torch.equal(again.sample(5), module.sample(5))
        other = Data()
        other.train = other.other
        trainer(tmp_path).fit(again, other)
        assert other.loaders == 1, "one for training, and none for a fit"
    if of == "reference":
        gaussians = reference(again)
        assert (gaussians.shrinkage, gaussians.passes, gaussians.ridge) == (0.3, 2, 1e-2)
        assert torch.equal(gaussians.factors, reference(module).factors)
        assert "energy.reference._factors" in module.state_dict()


def fit_or_resume(folder: Path, checkpoint: Path | None = None) -> tuple[JEM, Counted]:
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    given = Counted(1e-2, passes=2)
    module = model(given, data_noise=0.02, seed=None, class_conditional_weight=1.0)
    callbacks: list[L.Callback] = [EMAWeightAveraging(decay=0.5)]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3)
    t.fit(module, Data(noisy=True), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module, given


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_fits_nothing_and_ends_bit_equal(tmp_path):
    whole, given = fit_or_resume(tmp_path)
    assert len(given.seen) == 1
    for step in (1, 4, 7):
        again, unfitted = fit_or_resume(tmp_path, tmp_path / f"step={step}.ckpt")
        assert not hasattr(unfitted, "seen")
        assert not same(final(again), final(whole)), step
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("average_first", [True, False])
def test_averaged_models_have_the_fit(average_first, tmp_path):
    seen: list[Tensor] = []

    class Spy(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            seen.append(reference(pl_module).factors.clone())
            assert torch.allclose(
                reference(pl_module).factors @ reference(pl_module)._inverses, torch.eye(2), atol=1e-4
            )

    callbacks = [EMAWeightAveraging(decay=0.7), Spy()]
    module, alone = model(), model()
    trainer(tmp_path, limit_train_batches=0).fit(alone, Data())
    trainer(tmp_path, max_epochs=2, callbacks=callbacks if average_first else callbacks[::-1]).fit(module, Data())
    assert len(seen) == 6
    assert all(torch.allclose(factors, reference(alone).factors, rtol=1e-5) for factors in seen)


def test_logits_of_0_have_the_reference_as_their_density(tmp_path):
    """Z = K, of each class 1, by annealing, whose weights do not vary, and by quadrature in u and in x."""
    module = model(classifier=Zero())
    trainer(tmp_path, limit_train_batches=0).fit(module, Data())
    for energy in (module.energy, module.chain_energy):
        found = ais(energy, module.support, temperatures=5, num_chains=100, seed=0)
        assert found.log_z == pytest.approx(math.log(3), abs=1e-5)
        assert torch.allclose(found.per_class, torch.zeros(3).double(), atol=1e-5)
    assert quadrature(module.chain_energy, Box(-8, 8, (2,)), 1e-3) == pytest.approx(math.log(3), abs=2e-3)
    x = points(50, seeded()).tensors[0]
    u = module.coordinates(x)
    log_p = reference(module).log_prob(u) + module.coordinates.log_abs_det_jacobian(x, u)
    torch.testing.assert_close(-module.energy(x) - math.log(3), log_p.float(), atol=1e-4, rtol=1e-5)


def test_training_in_a_reference_stays_normalized(tmp_path):
    """After some steps, log Z of annealing against quadrature in u."""
    module = model()
    trainer(tmp_path, max_epochs=3).fit(module, Data())
    exact = quadrature(module.chain_energy, Box(-8, 8, (2,)), 1e-3)
    found = ais(module.eval().energy, module.support, temperatures=40, num_chains=400, seed=0)
    assert abs(found.log_z - exact) < 5 * found.std_err + 2e-3


def test_evaluation_starts_new_chains_at_the_fit(tmp_path):
    """And fits an initial distribution that is not fitted to data in coordinates."""
    data = Data()
    data.setup("fit")
    module = model(ClassGaussians(1e-2, 0.3))
    trainer(tmp_path, limit_train_batches=0).fit(module, data)
    assert initial_density("reference", module, data) is None
    assert initial_density("model", module, data) is None
    assert initial_density(reference(module), module, data) is reference(module)
    fitted = initial_density(ClassGaussians(1e-2, 0.3), module, data)
    assert torch.allclose(fitted.factors, reference(module).factors, atol=1e-5)
    one, two = (module.sample(4, sampler=MALA(1e-9, 1), initial=d) for d in (None, module.support))
    assert torch.equal(one, two)


def test_unlabeled_data_are_refused(tmp_path):
    x, y = points(40, seeded()).tensors
    with pytest.raises(ValueError, match="should have a label for each image for ClassGaussians, got unlabeled ones"):
        trainer(tmp_path).fit(model(), Batches({"clf": (x, y), "gen": x}))
    with pytest.raises(ValueError, match="at least 2 images of each class for ClassGaussians, got 0 of class 2"):
        trainer(tmp_path).fit(model(), Batches((x, y % 2)))


def test_use_before_the_fit():
    module = model()
    module.coordinates.fit(points(40, seeded()).tensors[0])
    with pytest.raises(RuntimeError, match="This ClassGaussians is not fitted yet"):
        module.energy(torch.zeros(2, 2))


@pytest.mark.slow
def test_two_ranks_have_the_same_fit(tmp_path):
    """Each reads half of the data. It is the fit of one process."""
    command = [sys.executable, "-m", "tests.modules.reference_script", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a if "reference" in name or "networks.0" in name)
    assert torch.equal(
        a["energy.classifier.networks.1.layers.1.weight"], b["energy.classifier.networks.1.layers.1.weight"]
    )
    alone = model(ClassGaussians(1e-2))
    trainer(tmp_path, limit_train_batches=0).fit(alone, Data())
    assert torch.allclose(a["energy.reference._factors"], reference(alone).factors, rtol=1e-5)
    assert torch.equal(a["energy.reference._counts"], reference(alone).counts)
