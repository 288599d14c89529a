"""Several processes: exact resumes, another number of ranks, every loss, and a rank that is killed.

Mutants that these tests kill: only rank 0's chains saved; one generator for all ranks; rank 0's random state on all;
all chains loaded by rank 0; Gaussians fitted to one rank's part of the data.
"""

import itertools
import os
from pathlib import Path

import pytest
import torch

from ebm_lightning.data import Rings
from ebm_lightning.supports import ClassGaussians
from tests.resume.ranks import WEIGHTS, logs, run_ranks, saved
from tests.resume.runs import same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    codes = run_ranks(folder, "whole", 2)
    assert (folder / "weights-5-0.pt").exists(), logs(folder, "whole")
    torch.save(codes, folder / "codes")
    return folder


def test_two_ranks_resume_bit_for_bit(folder):
    """From the end of an epoch and within one; each rank with its chains, generator and random state."""
    whole = saved(folder, "whole", 2)
    assert same(*whole)[:1] == ["generator"]
    for step in (4, 6):
        for rank, again in enumerate(saved(folder, f"again-{step}", 2)):
            assert not same(again, whole[rank]), (step, rank)


def test_a_checkpoint_holds_every_rank_and_loads_safely(folder):
    ranks = torch.load(folder / "step=6.ckpt", weights_only=True)["ranks"]
    assert len(ranks) == 2
    a, b = (state["chains"]["chains"]["x"] for state in ranks)
    assert a.shape == b.shape == (21, 2)
    assert distinct([a, b]) == 42


@pytest.mark.parametrize("ranks", [1, 4])
def test_no_chain_is_lost_or_duplicated_on_another_number_of_ranks(ranks, folder):
    assert run_ranks(folder, "reshard", ranks) == [0] * ranks, logs(folder, "reshard")
    assert "every chain continues, but with new random numbers" in logs(folder, "reshard")
    after, before = saved(folder, f"reshard-{ranks}", ranks), torch.load(folder / "step=6.ckpt")["ranks"]
    for name in ("chains", "class_chains"):
        old = torch.cat([state["chains"][name]["x"] for state in before])
        new = [state[f"{name}/x"] for state in after]
        assert [len(x) for x in new] == [42 if ranks == 1 else 21] * ranks
        assert distinct(new) == len(torch.cat(new)), "every chain is on one rank"
        assert (old[:, None] == torch.cat(new)).all(2).any(1).all(), "no chain is lost"
        ages = torch.cat([state["chains"][name]["age"] for state in before])
        assert torch.cat([state[f"{name}/age"] for state in after]).sum() == ages.sum()
    generators = [state["generator"] for state in after] + [state["generator"] for state in before]
    generators += [state["global"] for state in after]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(generators, 2))


def distinct(chains: list[torch.Tensor]) -> int:
    return len(torch.cat(chains).unique(dim=0))


@pytest.mark.parametrize("i", range(len(WEIGHTS)), ids=map(str, WEIGHTS))
def test_plain_ddp_trains_every_combination_of_weights_and_ranks_agree(i, folder):
    """With and without batch norm; no parameter is unused."""
    a, b = saved(folder, f"weights-{i}", 2)
    assert all(torch.isfinite(p).all() and torch.equal(p, b[name]) for name, p in a.items())


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step_with_a_checkpoint(folder):
    last = torch.load(folder / "interrupt" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert len(last["ranks"]) == 2


def test_if_a_rank_is_killed_the_other_ends_with_an_error_and_a_complete_checkpoint(folder):
    """The first or the second rank, depending on TEST_SEED."""
    codes, killed = torch.load(folder / "codes"), int(os.environ.get("TEST_SEED", "0")) % 2
    assert codes[killed] == -9
    assert codes[1 - killed] not in (0, -9)
    last = torch.load(folder / "kill" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert len(last["ranks"]) == 2


def test_ranks_fit_the_same_initial_distribution_to_all_data(tmp_path):
    assert run_ranks(tmp_path, "gaussians", 2) == [0, 0], logs(tmp_path, "gaussians")
    whole = saved(tmp_path, "gaussians", 2)
    for name in ("counts", "means", "factors"):
        assert torch.equal(whole[0][name], whole[1][name])
    data, expected = Rings(size=67), ClassGaussians()
    data.setup()
    expected.fit([data.train.tensors], 3)
    assert torch.equal(whole[0]["counts"], expected.counts)
    assert torch.allclose(whole[0]["means"], expected.means)
    assert torch.allclose(whole[0]["factors"], expected.factors, atol=1e-6)
    for rank, again in enumerate(saved(tmp_path, "gaussians-again", 2)):
        assert not same(again, whole[rank]), rank
