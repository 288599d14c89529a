import pytest
import torch

from ebm_lightning import Calibration, ConditionalEBM, ErrorBars
from ebm_lightning.evaluation.names import model_name, model_names
from tests.callbacks.helpers import image_jem
from tests.helpers import batches, jem, trainer


def test_errors_are_those_of_the_test_images(tmp_path):
    module, loader = image_jem(), batches(n=50, batch_size=20, shape=(1, 8, 8))
    callback = ErrorBars(5)
    (metrics,) = trainer(tmp_path, callbacks=[callback, Calibration(5)]).test(module, loader, verbose=False)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(module.eval()(x), y, reduction="none")
    assert metrics["test/images"] == 50
    assert metrics["test/nll_std_err"] == pytest.approx(float(nll.std()) / 50**0.5, rel=1e-4)
    assert float(callback.values["correct"].double().mean()) == pytest.approx(metrics["test/accuracy"])
    assert 0 < metrics["test/accuracy_std_err"] < 0.1
    assert 0 < metrics["test/ece_std_err"] < 0.2


def test_models_are_named_by_what_they_are_trained_on():
    module = jem()
    plain = ConditionalEBM(module.classifier, 3, module.support)
    assert model_name(module) == "JEM"
    assert model_name(plain) == model_name(jem(generative_weight=0.0)) == "classifier"
    assert model_names({"model": module, "baseline": plain}) == {"model": "JEM", "baseline": "classifier"}
    assert list(model_names({"model": module, "baseline": jem()}).values()) == ["JEM (model)", "JEM (baseline)"]
