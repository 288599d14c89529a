"""``evaluate`` in Python.

Mutants that these kill: a baseline that is measured with its own features, another seed per model, a model left in
eval mode or attached to the trainer of the evaluation, a global random state that is changed, metrics of the baseline
without their prefix, samples and log Z on a support of infinite mass.
"""

import html
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import ConditionalEBM, evaluate
from ebm_lightning.evaluation.metrics import OODScores
from ebm_lightning.networks import MLP
from ebm_lightning.supports import Binary
from tests.evaluation.models import MEASURED, SETS, SMALL, arrays, small_classifier, small_jem
from tests.helpers import trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:log Z is unreliable", "ignore:.*log_every_n_steps")
FEW: dict[str, Any] = SMALL | {"ais_temperatures": 0, "refine_steps": (), "linf": (), "l2": (), "noise": ()}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """The folder and metrics of two models, with one set of out-of-distribution images."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = arrays(folder)
    options = SMALL | {"ood": ("images.npz",), "ood_root": folder}
    return folder / "out", evaluate(small_jem(data), data, small_classifier(data), folder / "out", **options)


def test_both_models_are_measured(evaluated):
    folder, metrics = evaluated
    names = MEASURED | {f"samples/{name}_classifier" for name in ("fid", "kid", "is")}
    names |= {"samples/fid_classifier_floor", "samples/kid_classifier_floor", "ood/images.npz/auroc"}
    assert set(metrics) >= names | {f"baseline/{name}" for name in names} | {"seconds"}
    assert (metrics["test/images"], metrics["test/ece_bins"], metrics["ood/images"]) == (50, 10, 30)
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_both_models_get_the_same_images_and_features(evaluated):
    _, metrics = evaluated
    assert metrics["refine/accuracy_0"] == metrics["robust/clean"]
    assert metrics["samples/fid_classifier_floor"] == metrics["baseline/samples/fid_classifier_floor"]


def test_the_report_is_self_contained(evaluated):
    folder, _ = evaluated
    text = (folder / "report.html").read_text()
    shown = {path.name for path in folder.glob("*/*.png") if not path.name.startswith("ood-")}
    assert len(shown) == 6
    assert len(list(folder.glob("ood-*.png"))) == len(SETS) + 1, "one picture of each set, with both models"
    assert text.count("data:image/png;base64,") == 2 * len(shown) + len(SETS) + 1
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    for heading in ("Verdict", "Classifier", "Out-of-distribution detection", "Energies", "Likelihood", "Samples",
                    "Robustness", "Refinement"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert "Evaluation of JEM" in text
    assert "Model: JEM of MLP with 1,571 parameters. Baseline: ConditionalEBM of MLP" in text
    assert '<th scope="col">JEM</th><th scope="col">classifier</th>' in text
    assert "NETWORKS DIFFER" not in text


def test_the_report_says_why_log_z_is_not_reliable(evaluated):
    """20 chains are too few."""
    folder, metrics = evaluated
    text = html.unescape((folder / "report.html").read_text())
    for name, prefix in (("JEM", ""), ("classifier", "baseline/")):
        assert metrics[f"{prefix}ais/reliable"] == 0
        reason = "The weights are worth .* independent chains, .*: raise 'temperatures' or 'num_chains'."
        assert re.search(f"Log Z of {name} is not reliable. {reason}", text)


def test_differences_are_those_on_the_same_images(evaluated, tmp_path):
    _, metrics = evaluated
    for key in ("test/accuracy", "test/nll", "test/ece", "ood/flipped/log_density/auroc", "ais/log_likelihood"):
        assert metrics[f"compared/{key}"] == pytest.approx(metrics[key] - metrics[f"baseline/{key}"], abs=1e-5)
    data = arrays(tmp_path)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    with torch.no_grad():
        nll = [
            nn.functional.cross_entropy(m(x), y, reduction="none") for m in (small_jem(data), small_classifier(data))
        ]
    expected = float((nll[0] - nll[1]).std()) / math.sqrt(len(y))
    assert metrics["compared/test/nll_std_err"] == pytest.approx(expected, rel=1e-4)


def test_a_failed_call_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    data = arrays(tmp_path / "data")
    with pytest.raises(ValueError, match="abacus"):
        evaluate(small_classifier(data), data, output="out/eval", **FEW | {"device": "abacus"})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_metrics_agree_with_direct_computation(evaluated, tmp_path):
    _, metrics = evaluated
    data = arrays(tmp_path)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    for prefix, model in (("", small_jem(data)), ("baseline/", small_classifier(data))):
        with torch.no_grad():
            logits, ood = model(x), model.energy(x.flip(-1))
            scores = OODScores()
            scores.update(-model.energy(x)[torch.arange(50) * 30 % 50 < 30], -ood[torch.arange(50) * 30 % 50 < 30])
        assert metrics[f"{prefix}test/nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
        assert metrics[f"{prefix}test/accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
        assert metrics[f"{prefix}ood/flipped/auroc"] == pytest.approx(float(scores.compute()["auroc"]), abs=1e-6)


def test_a_loader_gives_the_numbers_of_its_data_module(evaluated, tmp_path):
    """Without the data module the levels are unknown, so there are no bits; the global random state has no effect."""
    _, metrics = evaluated
    data = arrays(tmp_path)
    data.setup("test")
    torch.manual_seed(17)
    found = evaluate(small_jem(data), data.test_dataloader(), small_classifier(data), tmp_path / "out", **SMALL)
    missing = {key for key in metrics if "images.npz" in key or "bits" in key}
    assert set(metrics) - set(found) == missing
    assert {key: value for key, value in found.items() if key != "seconds"} == {
        key: value for key, value in metrics.items() if key in found and key != "seconds"
    }


def test_models_and_random_states_are_restored(tmp_path):
    data = arrays(tmp_path)
    model, other = small_jem(data), small_classifier(data).eval()
    fit = trainer(tmp_path, max_epochs=2, max_steps=1)
    fit.fit(model, data)
    model.train()
    model.classifier.layers[1].eval()
    modes = [module.training for module in model.modules()]
    x, state, before = model.chains.x.clone(), torch.get_rng_state(), weights(model).clone()
    evaluate(model, data, other, tmp_path / "out", **FEW)
    assert [module.training for module in model.modules()] == modes
    assert not other.training
    assert model.trainer is fit
    assert data.trainer is fit
    with pytest.raises(RuntimeError, match="not attached"):
        _ = other.trainer
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.chains.x, x)
    assert torch.equal(weights(model), before)
    fit.fit_loop.epoch_loop.max_steps = 2
    fit.fit(model, data)  # training continues
    assert not torch.equal(weights(model), before)


def test_without_a_baseline_the_report_states_it(tmp_path):
    data = arrays(tmp_path)
    metrics = evaluate(small_classifier(data), data, output=tmp_path / "out", title="A & B", **FEW)
    assert {"samples/fid_model", "samples/fid_model_start"} <= set(metrics)
    assert not any(name.startswith(("baseline/", "ais/", "refine/")) for name in metrics)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "No baseline was given" in text
    assert "<h1>A &amp; B</h1>" in text


def test_images_can_be_given_as_a_mapping(tmp_path):
    data = arrays(tmp_path)
    metrics = evaluate(
        small_classifier(data), data, output=tmp_path / "out", ood={"mine": -torch.ones(9, 3, 8, 8)}, **FEW
    )
    assert {"ood/mine/auroc", "ood/noise/auroc"} <= set(metrics)


def test_a_classifier_on_all_of_space_has_no_samples_and_no_log_z(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), 10)
    metrics = evaluate(ConditionalEBM(MLP(4, 3, (8,)), 3), loader, output=tmp_path / "out", **SMALL)
    assert {"test/accuracy", "robust/linf_0.1", "refine/accuracy_2", "ood/interpolated/auroc"} <= set(metrics)
    assert not any(name.startswith(("samples/", "ais/", "ood/noise")) for name in metrics)


def test_networks_that_differ_are_stated(tmp_path):
    data = arrays(tmp_path)
    evaluate(small_classifier(data), data, ConditionalEBM(MLP(192, 3, (5,)), 3, data.support), tmp_path / "out", **FEW)
    assert "THE NETWORKS DIFFER" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "'bins' should be at least 1, got 0"),
        ({"samples": 5}, "'samples' should be at least 20, got 5"),
        ({"linf": (0.1, -1.0)}, "'linf' should be positive, got -1.0"),
        ({"refine_steps": (-1,)}, "'refine_steps' should be 0 or positive, got -1"),
        ({"ais_temperatures": -1}, "'ais_temperatures' should be 0, positive or None, got -1"),
        ({"initial": "data"}, "'initial' should be 'model', 'reference' or a Density, got 'data'"),
        ({"logger": "tensorboard"}, "'logger' should be 'csv' or 'wandb', got 'tensorboard'"),
        ({"baseline": nn.Linear(192, 3)}, "'baseline' should be a JEM or a ConditionalEBM, got Linear"),
        ({"baseline": ConditionalEBM(MLP(192, 3), 3)}, r"'baseline' should have the domain of the model, Box\("),
        ({"model": ConditionalEBM(MLP(4, 3), 3, Binary((4,)))}, "'model' should have gradients in x, got .* Binary"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, options, message):
    data = arrays(tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate(**{"model": small_classifier(data), "data": data, "output": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_optional_packages_are_named(tmp_path, monkeypatch):
    data = arrays(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"'wandb' is needed for logger='wandb'. Run 'pip install wandb', or"):
        evaluate(small_classifier(data), data, output=tmp_path / "out", logger="wandb", **FEW)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match="'tqdm' is needed for progress bars"):
        evaluate(small_classifier(data), data, output=tmp_path / "out", **FEW | {"progress_bar": True})


def test_results_are_never_overwritten(tmp_path):
    data = arrays(tmp_path)
    with pytest.raises(ValueError, match="'output' should be a new or empty folder"):
        evaluate(small_classifier(data), data, output=tmp_path, **FEW)
