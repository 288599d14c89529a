"""Sums of logits: a product of experts, in checkpoints and with a density as one of the classifiers.

Mutants that these tests kill: the mean in place of the sum; networks that are not registered; a fit that is not part of
the checkpoint; a density inside a network that is not fitted, or fitted twice.
"""

import pytest
import torch

from ebm_lightning import JEM, MALA, ClassGaussians, ConditionalEBM, ReplayBuffer
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.networks import MLP, ConvNet, SumLogits, ThresholdConvNet
from ebm_lightning.resume.hparams import describe, rebuild
from ebm_lightning.supports import Box
from tests.helpers import batches, jem, trainer

SHAPE = (1, 4, 4)
BOX = Box(-1, 1, SHAPE)


def test_logits_are_added():
    one, two, x = MLP(4, 3, (8,)), MLP(4, 3, ()), torch.randn(5, 4)
    net = SumLogits([one, two])
    torch.testing.assert_close(net(x), one(x) + two(x))
    assert len(list(net.parameters())) == 6
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match="'networks' should hold at least one network, got none"):
        SumLogits([])


def classifier() -> SumLogits:
    return SumLogits([ClassGaussians(1e-2, 0.5, 2), ThresholdConvNet(SHAPE, 3, 4, 8)])


@pytest.mark.parametrize("kind", ["JEM", "ConditionalEBM"])
def test_a_model_with_gaussians_in_its_classifier_is_loaded_with_their_fit(kind, tmp_path):
    data, x = batches(48, 8, SHAPE), BOX.sample(20)
    module = jem(classifier(), support=BOX, sampler=MALA(0.1, 2), chains=ReplayBuffer(30))
    if kind == "ConditionalEBM":
        module = ConditionalEBM(classifier(), 3, BOX)
    t = trainer(tmp_path)
    t.fit(module, data)
    t.save_checkpoint(tmp_path / "m.ckpt")
    gaussians = module.classifier.networks[0]
    assert gaussians.counts.sum() == 2 * 48, "two passes"
    again = load_model(tmp_path / "m.ckpt")
    assert type(again) is type(module)
    assert type(again.classifier.networks[1]) is ThresholdConvNet
    assert torch.equal(again.eval()(x), module.eval()(x))
    assert vars(again.classifier.networks[0])["shrinkage"] == 0.5
    before = gaussians.means.clone()
    trainer(tmp_path).fit(again, batches(24, 8, SHAPE))
    assert torch.equal(again.classifier.networks[0].means, before), "a fit of a checkpoint stays"


def test_the_model_begins_at_the_predictions_of_the_gaussians(tmp_path):
    module = jem(classifier(), support=BOX, sampler=MALA(0.1, 2), chains=ReplayBuffer(30))
    trainer(tmp_path, limit_train_batches=0).fit(module, batches(48, 8, SHAPE))
    gaussians, x = module.classifier.networks[0], BOX.sample(20)
    torch.testing.assert_close(module(x), gaussians.log_joint(x).log_softmax(1).float())
    torch.testing.assert_close(module.energy(x), torch.zeros(20), atol=1e-5, rtol=0)  # log q is 0 on the box


def test_networks_with_other_classifiers_nest():
    net = SumLogits([SumLogits([ConvNet(SHAPE, 3, 4), ThresholdConvNet(SHAPE, 3, 4, 8)]), ClassGaussians()])
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    assert describe(again) == describe(net)
    assert JEM(again, 3, BOX).hparams["classifier"] == describe(net)
