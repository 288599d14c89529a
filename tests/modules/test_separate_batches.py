"""Runs with two loaders resume exactly from any step, on one rank and on two.

Mutants that these tests kill: orders that do not depend on the epoch; a loader that was not exhausted at the end of an
epoch and continues in the next; augmentation or noise from a generator that is not saved.
"""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ebm_lightning import SADAJEM, SGLD, ClassGaussians, ReplayBuffer
from ebm_lightning.data import ImageArrays
from ebm_lightning.networks import MLP
from tests.helpers import trainer
from tests.modules.two_loaders import arrays, run
from tests.resume.ranks import logs, run_ranks, saved
from tests.resume.runs import final, same

pytestmark = [pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"), pytest.mark.slow]

# Batch sizes for 44 images: an epoch ends when the first, the second, or both loaders are exhausted.
SIZES = {"clf ends": (8, 4), "gen ends": (4, 8), "both end": (11, 11)}
SETTINGS = {
    "plain": {},
    "validation in the epoch": {"val_check_interval": 2},
    "no validation": {"limit_val_batches": 0},
    "accumulation": {"accumulate_grad_batches": 2},
    "part of the epoch": {"limit_train_batches": 3},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_step_of_two_epochs_resumes_bit_for_bit(settings, sizes, tmp_path):
    arrays(tmp_path)
    check(tmp_path, sizes, settings)


def test_a_run_limited_by_steps_resumes_bit_for_bit(tmp_path):
    arrays(tmp_path)
    check(tmp_path, (8, 4), {"max_epochs": -1, "max_steps": 10})


def check(folder, sizes, settings) -> None:
    whole = run(folder, sizes=sizes, **settings)
    checkpoints = sorted((folder / "saved").glob("*.ckpt"))
    assert len(checkpoints) > 3
    assert len({tuple(x.tolist()) for x in whole["seen"]}) == len(whole["seen"])
    for path in checkpoints:
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]["total"]["ready"]
        again = run(folder, path, sizes, **settings)
        due = whole["seen"][batches:]
        assert len(again["seen"]) == len(due), path.name
        assert all(torch.equal(a, b) for a, b in zip(again["seen"], due, strict=True)), path.name
        assert torch.equal(again["weights"], whole["weights"]), path.name


def test_two_ranks_read_different_data_and_resume_bit_for_bit(tmp_path):
    arrays(tmp_path)
    assert run_ranks(tmp_path, "separate", 2) == [0, 0], logs(tmp_path, "separate")
    whole = saved(tmp_path, "separate", 2)
    assert torch.equal(whole[0]["weights"], whole[1]["weights"])
    assert len(whole[0]["seen"]) == 4
    rows = [torch.cat(rank["seen"][:2]).view(-1, 192) for rank in whole]
    assert len(torch.cat(rows).unique(dim=0)) == 4 * 12, "ranks have different noise"
    for step in (2, 3):
        for rank in range(2):
            again = saved(tmp_path, f"separate-{step}", 2)[rank]
            assert all(torch.equal(a, b) for a, b in zip(again["seen"], whole[rank]["seen"][step:], strict=True))
            assert torch.equal(again["weights"], whole[rank]["weights"])


def sharpness_aware(folder, checkpoint=None):
    """Two epochs of SADA-JEM with a fitted initial distribution; or resumed from a checkpoint under another seed."""
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    data = ImageArrays(folder / "images.npz", 8, 16, "crop-flip", separate_batch_size=4)
    buffer = ReplayBuffer(12, 0.3, ClassGaussians(1e-2))
    module = SADAJEM(MLP(192, 3, (8,)), 3, data.support, SGLD(0.1, 0.01, 2), buffer, data_noise=0.05)
    saver = ModelCheckpoint(folder / "saved", "{step}", save_top_k=-1, every_n_train_steps=3)
    saving = {"callbacks": [saver], "enable_checkpointing": True} if checkpoint is None else {}
    trainer(folder, max_epochs=2, **saving).fit(module, data, ckpt_path=checkpoint)
    return final(module)


def test_a_sharpness_aware_run_resumes_bit_for_bit(tmp_path):
    arrays(tmp_path)
    whole = sharpness_aware(tmp_path)
    checkpoints = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(checkpoints) == 3
    for path in checkpoints:
        assert same(sharpness_aware(tmp_path, path), whole) == [], path.name
