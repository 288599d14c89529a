import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    Box,
    ClassGaussians,
    ClassificationRBM,
    ConditionalEBM,
    Gaussian,
    ReplayBuffer,
    evaluate,
)
from ebm_lightning.evaluation.inputs import feature_network, initial_density, labeled_data, ood_sources
from ebm_lightning.networks import MLP
from tests.data.pictures import write_idx
from tests.evaluation.models import SETS, arrays, small_classifier, small_jem


def test_an_initial_density_is_fitted_to_the_training_images(tmp_path):
    """To the images for p(x), each once, as a copy and without changing the global random state."""
    data = arrays(tmp_path, noise_std=0.5, separate_batch_size=4)
    model = small_jem(data, chains=ReplayBuffer(8, initial=ClassGaussians(1e-2)))
    state = torch.get_rng_state()
    density = initial_density("model", model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert density.ridge == 1e-2
    assert density.counts.sum() == len(data.train_gen) == 44
    x, y = data.train_gen.levels, data.train_gen.labels
    means = torch.stack([(x[y == k] + 0.5).flatten(1).double().mean(0) / 128 - 1 for k in range(3)])
    torch.testing.assert_close(density.means.double(), means, atol=0.005, rtol=0)
    with pytest.raises(RuntimeError, match="not fitted"):
        _ = model.chains.initial.counts


def test_a_fitted_density_is_used_as_it_is(tmp_path):
    data = arrays(tmp_path)
    density = initial_density(ClassGaussians(1.0), small_classifier(data), data)
    assert density.counts.sum() == 44
    data.setup("test")
    assert initial_density(density, small_classifier(data), data.test_dataloader()) is density


def test_the_initial_density_of_a_model(tmp_path):
    data = arrays(tmp_path)
    model = small_jem(data, chains=ReplayBuffer(8, initial=ClassGaussians()))
    assert initial_density("reference", model, data) is None
    assert initial_density("model", small_classifier(data), data) is None
    data.setup("test")
    with pytest.raises(ValueError, match="'data' should be a data module, got DataLoader: ClassGaussians is fitted"):
        initial_density("model", model, data.test_dataloader())


def test_features_of_a_network_without_a_linear_layer_are_its_inputs():
    rbm = ClassificationRBM(4, 3, 2, Gaussian(0.0, 1.0, (1, 2, 2)))
    network = feature_network(None, {"model": rbm})
    x = torch.randn(5, 1, 2, 2)
    assert network.label == "inputs"
    assert torch.equal(network.features(x), x.flatten(1))
    assert network.classifier(x).shape == (5, 2)


def test_the_usual_sets_of_the_data_are_used_if_they_are_there(tmp_path):
    write_idx(tmp_path, "FashionMNIST")
    data = type("MNIST", (), {"root": tmp_path, "download": False, "num_levels": 256})()
    sets, missing = ood_sources(None, data, Box(-1, 1, (1, 28, 28)), None, 5)
    assert list(sets) == [*SETS, "FashionMNIST"]
    assert sets["FashionMNIST"].shape == (5, 1, 28, 28)
    assert missing == ["KMNIST", "notMNIST", "Omniglot"]


X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3


class TwoTestSets(L.LightningDataModule):
    """The second has wrong labels."""

    def test_dataloader(self):
        return [DataLoader(TensorDataset(X, y), 10) for y in (Y, (Y + 1) % 3)]


@pytest.mark.filterwarnings("ignore:Creating legend")  # on a busy machine
def test_tensors_datasets_loaders_and_several_test_sets_are_evaluated_alike(tmp_path):
    torch.manual_seed(0)
    model = ConditionalEBM(MLP(4, 3, (8,)), 3)
    few = {"linf": (0.1,), "l2": (), "noise": (), "attack_steps": 1, "refine_steps": (), "progress_bar": False}
    found = [
        evaluate(model, data, output=tmp_path / str(i), device="cpu", **few)
        for i, data in enumerate(((X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 250), TwoTestSets()))
    ]
    for metrics in found:
        del metrics["seconds"]
        assert metrics.keys() == found[0].keys()
        for name in ("test/accuracy", "test/ece", "robust/linf_0.1"):
            assert metrics[name] == pytest.approx(found[0][name], abs=1e-6), name


@pytest.mark.parametrize("data", [X, X.numpy(), [X, X], 3.0], ids=["tensor", "array", "batches", "number"])
def test_data_without_labels_are_refused(data):
    with pytest.raises(ValueError, match=rf"'data' should be a data module, .*, got {type(data).__name__}\."):
        labeled_data(data)
