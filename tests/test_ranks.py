"""Several processes: exact resumes, chains dealt to other numbers of them, every loss, and one that dies.

Mutants that these tests kill: only rank 0's chains saved; one generator for all ranks; rank 0's random state for all;
chains dealt to rank 0 alone; Gaussians fitted to a rank's own share.
"""

import itertools
import os
import socket
from pathlib import Path

import pytest
import torch

from ebm_lightning.data import Rings
from ebm_lightning.starts import ClassGaussians
from tests.ranks import WEIGHTS, launch
from tests.runs import same


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(folder: Path, job: str, ranks: int) -> list[int]:
    """Exit codes of the processes, all of which end within two minutes."""
    processes = launch(folder, job, ranks, free_port())
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder: Path, job: str) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{job}-*.log")))


def kept(folder: Path, job: str, ranks: int) -> list[dict]:
    return [torch.load(folder / f"{job}-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    codes = together(folder, "whole", 2)
    assert (folder / "weights-5-0.pt").exists(), logs(folder, "whole")
    torch.save(codes, folder / "codes")
    return folder


def test_two_ranks_resume_bit_for_bit(folder):
    """From an epoch's end and from within one; each rank with its own chains, generator and random state."""
    whole = kept(folder, "whole", 2)
    assert same(*whole)[:1] == ["generator"]
    for step in (4, 6):
        for rank, again in enumerate(kept(folder, f"again-{step}", 2)):
            assert not same(again, whole[rank]), (step, rank)


def test_a_checkpoint_holds_every_rank_and_loads_safely(folder):
    ranks = torch.load(folder / "step=6.ckpt", weights_only=True)["ranks"]
    assert len(ranks) == 2
    a, b = (state["chains"]["chains"]["x"] for state in ranks)
    assert a.shape == b.shape == (21, 2)
    assert distinct([a, b]) == 42


@pytest.mark.parametrize("ranks", [1, 4])
def test_no_chain_is_lost_or_doubled_on_another_number_of_ranks(ranks, folder):
    assert together(folder, "deal", ranks) == [0] * ranks, logs(folder, "deal")
    assert "every chain goes on, with random numbers that are new" in logs(folder, "deal")
    after, before = kept(folder, f"deal-{ranks}", ranks), torch.load(folder / "step=6.ckpt")["ranks"]
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
    """No parameter goes unused, with and without batch norm."""
    a, b = kept(folder, f"weights-{i}", 2)
    assert all(torch.isfinite(p).all() and torch.equal(p, b[name]) for name, p in a.items())


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step_with_a_checkpoint(folder):
    last = torch.load(folder / "interrupt" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert len(last["ranks"]) == 2


def test_when_a_rank_dies_the_other_ends_with_an_error_and_a_whole_checkpoint(folder):
    """The first or the second, as TEST_SEED says."""
    codes, dead = torch.load(folder / "codes"), int(os.environ.get("TEST_SEED", "0")) % 2
    assert codes[dead] == -9
    assert codes[1 - dead] not in (0, -9)
    last = torch.load(folder / "die" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert len(last["ranks"]) == 2


def test_ranks_start_chains_in_the_same_gaussians_fitted_to_every_point(tmp_path):
    assert together(tmp_path, "gaussians", 2) == [0, 0], logs(tmp_path, "gaussians")
    whole = kept(tmp_path, "gaussians", 2)
    for name in ("counts", "means", "factors"):
        assert torch.equal(whole[0][name], whole[1][name])
    data, alone = Rings(size=67), ClassGaussians()
    data.setup()
    alone.fit([data.train.tensors], 3)
    assert torch.equal(whole[0]["counts"], alone.counts)
    assert torch.allclose(whole[0]["means"], alone.means)
    assert torch.allclose(whole[0]["factors"], alone.factors, atol=1e-6)
    for rank, again in enumerate(kept(tmp_path, "gaussians-again", 2)):
        assert not same(again, whole[rank]), rank
