"""FeatureJEM: a frozen network, its features, and a joint energy model of them."""

import copy
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import JEM, ConditionalEBM, FeatureJEM, Whitening
from ebm_lightning.modules.cache_features import cache_features
from tests.helpers import trainer

N, K, D = 240, 3, 6


def data(shape=(4,)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % K
    x = torch.randn(N, *shape, generator=generator)
    return x + 2 * y.view(-1, *[1] * len(shape)), y


def vectors() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, K)).eval()


class Pictures(nn.Module):
    """A convolutional network with batch norm, pooling and an output object, as of Hugging Face."""

    def __init__(self, named_output: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, D, 3, padding=1), nn.BatchNorm2d(D), nn.SiLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(1, 1)
        self.classifier = nn.Linear(D, K)
        self.named_output = named_output

    def encode(self, x):
        return self.pool(self.stem(x)).flatten(1)

    def forward(self, pixel_values):
        logits = self.classifier(self.encode(pixel_values))
        return SimpleNamespace(logits=logits) if self.named_output else logits


def pictures(named_output: bool = False) -> Pictures:
    torch.manual_seed(0)
    return Pictures(named_output).eval()


def fitted(network=None, x=None, **arguments) -> FeatureJEM:
    x, y = data() if x is None else (x, data()[1])
    model = FeatureJEM(vectors() if network is None else network, K, seed=0, **arguments)
    return model.fit((x, y), max_steps=3, batch_size=40, progress_bar=False)


def wrapped() -> ConditionalEBM:
    coordinates = Whitening((4,))
    coordinates.fit(data()[0])
    return ConditionalEBM(vectors(), K, coordinates=coordinates).eval()


KINDS = {
    "vectors": (vectors, (4,), {}),
    "a named layer": (vectors, (4,), {"features": "1"}),
    "images, by default": (pictures, (1, 5, 5), {}),
    "images, pooled layer": (pictures, (1, 5, 5), {"features": "pool", "num_features": D}),
    "a Hugging Face output": (lambda: pictures(True), (1, 5, 5), {}),
    "a ConditionalEBM": (wrapped, (4,), {}),
}


@pytest.mark.parametrize(("make", "shape", "arguments"), KINDS.values(), ids=KINDS)
def test_networks_of_every_kind_are_fitted_and_keep_their_predictions(make, shape, arguments):
    """Also in train mode. Mutants: batch norm in train mode; the head's logits; trained weights."""
    network, (x, _) = make(), data(shape)
    with torch.no_grad():
        before = network(x)
    before = getattr(before, "logits", before)
    model = fitted(network, x, **arguments)
    assert torch.equal(model(x), before)
    assert torch.equal(model.train()(x), before)
    model.threshold(x)
    assert 0 < model.is_ood(x).float().mean() < 0.1
    assert model.score(x).shape == (N,)
    assert model.sample(5, steps=2).shape == (5, D)


def test_a_function_gives_features():
    network, (x, _) = pictures(), data((1, 5, 5))
    model = fitted(network, x, features=network.encode, num_features=D)
    assert torch.equal(model.features(x), network.encode(x))
    assert torch.equal(model(x), network(x))


def test_features_are_the_input_of_the_last_linear_layer():
    network, (x, _) = vectors(), data()
    assert torch.equal(FeatureJEM(network, K).features(x), network[:2](x))
    assert torch.equal(FeatureJEM(network, K, "0").features(x), network[0](x))


def test_the_head_replaces_the_network_on_request():
    x = data()[0]
    model = fitted(replace_head=True)
    assert torch.equal(model(x), model.checked_logits(model.features(x)))
    assert not torch.equal(model(x), model.network(x))


@pytest.mark.parametrize("replace_head", [False, True])
def test_predictions_of_a_trainer_are_those_of_a_call(replace_head, tmp_path):
    x = data()[0]
    model = fitted(replace_head=replace_head)
    found = torch.cat([batch["logits"] for batch in trainer(tmp_path).predict(model, DataLoader(x, 50))])
    torch.testing.assert_close(found, model(x))


def test_a_trainer_fits_inputs_and_cached_features_alike(tmp_path):
    """Features of the same rows in the same order give the same weights. Mutant: another order, or other features."""
    models = []
    for cached in (False, True):
        model = FeatureJEM(vectors(), K, seed=0, head=nn.Linear(D, K))
        nn.init.zeros_(model.classifier.weight)
        nn.init.zeros_(model.classifier.bias)
        loader = model.feature_loader(data(), 40, progress_bar=False) if cached else None
        trainer(tmp_path).fit(model, loader or DataLoader(TensorDataset(*data()), 40))
        models.append(model)
    for one, other in zip(models[0].energy.state_dict().values(), models[1].energy.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_scores_do_not_prefer_short_features():
    """log p(z) does. Mutant: with the Jacobian."""
    x = data()[0]
    network = nn.Sequential(nn.Identity(), nn.Linear(4, K)).eval()
    model = FeatureJEM(network, K, seed=0).fit((x, data()[1]), max_steps=2, progress_bar=False)
    z = model.features(x)
    with torch.no_grad():
        jacobian = model.coordinates.log_abs_det_jacobian(z, model.coordinates(z))
        torch.testing.assert_close(model.score(x).double() + jacobian, -model.energy(z).double())
    assert (jacobian.diff() * z.norm(dim=1).diff() < 0).all()


def test_validation_data_calibrate_the_head():
    model = FeatureJEM(vectors(), K, seed=0)
    torch.manual_seed(0)
    model.fit(data(), data(), max_steps=30, progress_bar=False)
    z, y = model.features(data()[0]), data()[1]
    with torch.no_grad():
        logits = model.checked_logits(z)
        losses = [float(nn.functional.cross_entropy(t * logits.log_softmax(1), y)) for t in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("save_network", [True, False])
def test_a_checkpoint_has_the_network_or_needs_it(tmp_path, save_network):
    """Mutants: the network's weights in the file all the same; a network with other weights that is taken."""
    x, network = data()[0], vectors()
    model = fitted(network, save_network=save_network)
    threshold = model.threshold(x)
    run = trainer(tmp_path)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    saved = checkpoint["state_dict"]
    assert "current_model_state" not in checkpoint
    assert any(name.startswith("network_features.") for name in saved) == save_network

    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, K)).eval()
    given = other if save_network else network
    loaded = FeatureJEM.load_from_checkpoint(tmp_path / "model.ckpt", network=given, weights_only=True)
    assert torch.equal(loaded.score(x), model.score(x))
    assert torch.equal(loaded.is_ood(x), model.score(x).double() < threshold)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(ValueError, match="'network' should be given"):
        FeatureJEM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    if not save_network:
        with pytest.raises(RuntimeError, match="'network' should be the network that this model was fitted to"):
            FeatureJEM.load_from_checkpoint(tmp_path / "model.ckpt", network=other.apply(_moved), weights_only=True)


def _moved(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)


def test_a_network_that_changes_voids_the_score():
    model = fitted()
    with torch.no_grad():
        model.network[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="fitted to"):
        model.score(data()[0])


def test_log_z_and_density_hold_for_features():
    model = fitted()
    x = data()[0]
    log_z = model.estimate_log_z(x, temperatures=20, num_chains=100)
    z = model.features(x)
    torch.testing.assert_close(model.log_prob(x), -model.energy(z).double() - log_z.log_z)


def test_a_layer_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"got 'flatten'\. Its layers: 0, 1, 2\."):
        FeatureJEM(vectors(), K, "flatten")


def test_a_layer_that_is_not_used_is_refused():
    with pytest.raises(ValueError, match="'unused', which was not called"):
        fitted(pictures(), data((1, 5, 5))[0], features="unused")


def test_features_that_are_not_vectors_come_with_a_remedy():
    with pytest.raises(ValueError, match=re.escape("should have shape (240, D), got (240, 6, 5, 5) from layer 'stem'")):
        FeatureJEM(pictures(), K, "stem", num_features=D).score(data((1, 5, 5))[0], N)


def test_a_wrong_number_of_features_is_named():
    with pytest.raises(ValueError, match="'num_features' should be 6, the width of the features, got 5"):
        fitted(num_features=5)
    with pytest.raises(ValueError, match="'num_features' should be given"):
        FeatureJEM(vectors(), K, lambda x: x)


@pytest.mark.parametrize("part", ["all", "0"])
def test_a_network_in_train_mode_is_refused(part):
    network = vectors()
    (network if part == "all" else network[0]).train()
    with pytest.raises(ValueError, match="'network' should be in eval mode"):
        FeatureJEM(network, K)
    network.eval()
    model = FeatureJEM(network, K)
    network.train()
    with pytest.raises(ValueError, match="'network' should be in eval mode"):
        model(data()[0])


def test_features_that_are_not_finite_are_refused():
    x = data()[0].clone()
    x[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite ones in 1 of 240 rows"):
        fitted(x=x)


def test_fewer_vectors_than_dimensions_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="'train' should hold more inputs than the 6 features, got 6"):
        FeatureJEM(vectors(), K).fit((x[:D], y[:D]), progress_bar=False)


def test_memory_is_bounded():
    """Known before the first pass for a loader with a length; else during it."""
    calls = []
    network = vectors()
    network.register_forward_hook(lambda *_: calls.append(1))
    model = FeatureJEM(network, K)
    with pytest.raises(ValueError, match="'max_rows' should be at least the 240 rows"):
        cache_features(model, data(), 100, progress_bar=False)
    assert not calls
    endless = (data() for _ in iter(int, 1))
    with pytest.raises(ValueError, match="'max_rows' should be at least the 480 rows"):
        cache_features(model, endless, 300, progress_bar=False)


def test_data_modules_are_refused_with_a_remedy():
    class Module(L.LightningDataModule):
        def train_dataloader(self):
            return []

    with pytest.raises(ValueError, match="got the data module Module"):
        FeatureJEM(vectors(), K).fit(Module(), progress_bar=False)


def test_optimizers_do_not_get_the_network():
    model, before = FeatureJEM(vectors(), K), None
    before = copy.deepcopy(model.network.state_dict())
    model.fit(data(), max_steps=3, progress_bar=False)
    assert all(torch.equal(a, b) for a, b in zip(model.network.state_dict().values(), before.values(), strict=True))
    assert not any(p.requires_grad for p in model.network.parameters())
    assert isinstance(model, JEM)
