"""The models that come with the package: each loads, and reaches what its entry says."""

import hashlib
import math
import os
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch

import ebm_lightning
import ebm_lightning.data
from ebm_lightning import ConditionalEBM, evaluate, load
from ebm_lightning.models import models_table, shipped_models
from ebm_lightning.models.index import FOLDER
from ebm_lightning.resume.hparams import rebuild
from tests.helpers import RECIPES

MODELS = shipped_models()
DATA = Path(os.environ.get("EBM_DATA", RECIPES.parent.parent / "shared" / "data"))


def test_there_are_six_small_models():
    sizes = [(FOLDER / model.file).stat().st_size for model in MODELS.values()]
    assert len(sizes) >= 6
    assert max(sizes) < 2e6
    assert sum(sizes) < 8e6
    assert {path.name for path in FOLDER.glob("*.ckpt")} == {model.file for model in MODELS.values()}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_ready_for_use(name):
    """Kills: a checkpoint without its threshold or its log Z, a model in train mode."""
    model = load(name)
    assert isinstance(model, ConditionalEBM)
    assert not model.training
    x = model.sample(3, steps=1)
    assert model(x).shape == (3, model.num_classes)
    assert model.is_ood(x).shape == (3,)
    assert math.isfinite(model.log_z.log_z)
    assert model.log_z.reliable is bool(MODELS[name].metrics["ais/reliable"][0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log Z is unreliable", "ignore:Decoupled")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_reaches_what_its_entry_says(name, tmp_path):
    """Test data are fixed, so metrics that are not random are equal. Kills: weights of another model, stale entries."""
    entry = MODELS[name]
    data = rebuild(dict(entry.data), L.LightningDataModule, "data")
    if hasattr(data, "root"):
        data.root = DATA
        if not (DATA / type(data).__name__).is_dir():
            pytest.skip(f"{type(data).__name__} is not in {DATA}; set EBM_DATA to the folder that contains it.")
    model = load(name)
    metrics = evaluate(model, data, output=tmp_path / "out", progress_bar=False, **entry.settings)
    for key, (value, std_err) in entry.metrics.items():
        random = key.startswith("ais/") and key != "ais/reliable"  # another version of torch draws other chains
        noise = math.sqrt(2) * entry.metrics["ais/log_z"][1]
        noise = noise / (math.prod(model.domain.shape) * math.log(2)) if key == "ais/bits_per_dim" else noise
        tolerance = max(5 * noise if random else 0.1 * std_err, 1e-4)
        assert metrics[key] == pytest.approx(value, abs=tolerance), key


@pytest.mark.parametrize("wrong", ["digit", None, "./tests"])
def test_unknown_names_list_the_known_ones(wrong):
    with pytest.raises(ValueError, match=rf"'name_or_path' should be .* one of digits, .*rings.*, got {wrong!r}\."):
        load(wrong)


def test_a_file_is_taken_from_a_folder_or_by_its_path(tmp_path):
    shutil.copy(FOLDER / MODELS["rings"].file, tmp_path / "rings.ckpt")
    by_name, by_folder, by_path = load("rings"), load("rings", tmp_path), load(tmp_path / "rings.ckpt")
    x = by_name.sample(5, steps=1)
    assert torch.equal(by_folder.energy(x), by_name.energy(x))
    assert torch.equal(by_path.energy(x), by_name.energy(x))


def test_a_file_that_is_missing_or_changed_is_named_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rings\.ckpt.*reinstall ebm_lightning"):
        load("rings", tmp_path)
    content = bytearray((FOLDER / MODELS["rings"].file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rings.ckpt").write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        ValueError, match=rf"rings\.ckpt should be {MODELS['rings'].sha256}, got {found}.*load\('\./rings"
    ):
        load("rings", tmp_path)


def test_the_page_has_the_table():
    page = RECIPES.parent / "docs" / "models.md"
    assert models_table() in page.read_text(), "paste the table that 'ebm-lightning models' prints"


def test_training_can_continue_from_the_chains(tmp_path):
    model = load("rings")
    before = model.chains.x.clone()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, default_root_dir=tmp_path, enable_checkpointing=False, **options)
    trainer.fit(model, ebm_lightning.data.Rings(size=512, batch_size=64))
    moved = (model.chains.x != before).flatten(1).any(1).sum()
    assert 0 < moved <= 64
