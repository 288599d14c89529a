import pytest
import torch
from torch import nn

from ebm_lightning import JEM, SADAJEM, ConditionalEBM, ReplayBuffer
from ebm_lightning.evaluation.checkpoints import load_model
from tests.evaluation.models import arrays, small_classifier
from tests.helpers import trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*log_every_n_steps")


def saved(model, data, folder):
    fit = trainer(folder, max_steps=1)
    fit.fit(model, data)
    fit.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


class Mine(JEM):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)


@pytest.mark.parametrize("kind", [JEM, SADAJEM, Mine, ConditionalEBM])
def test_checkpoints_are_loaded_as_what_they_are(kind, tmp_path):
    data = arrays(tmp_path)
    model = small_classifier(data)
    if kind is not ConditionalEBM:
        model = kind(model.classifier, 3, data.support, chains=ReplayBuffer(16), seed=1)
    loaded = load_model(saved(model, data, tmp_path))
    assert type(loaded) is kind
    assert torch.equal(weights(loaded), weights(model))
    assert not loaded.training


def test_other_networks_are_given(tmp_path):
    data = arrays(tmp_path)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model = JEM(network, 3, data.support, chains=ReplayBuffer(16))
    path = saved(model, data, tmp_path)
    with pytest.raises(ValueError, match="'classifier' should be given"):
        load_model(path)
    blank = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    before = weights(blank).clone()
    assert torch.equal(weights(load_model(path, blank)), weights(model))
    assert torch.equal(weights(blank), before)


def test_other_modules_are_refused(tmp_path):
    torch.save({"hyper_parameters": {"num_classes": 3, "num_hidden": 4}}, tmp_path / "rbm.ckpt")
    with pytest.raises(ValueError, match="'path' should be a checkpoint of a JEM or a ConditionalEBM"):
        load_model(tmp_path / "rbm.ckpt")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    with pytest.raises(
        ValueError, match=r"'path' should be a checkpoint .* got .*notes\.txt, which holds something else"
    ):
        load_model(tmp_path / "notes.txt")
