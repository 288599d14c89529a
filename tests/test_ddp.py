"""Two processes under Lightning's DDP, over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ddp_script import ESTIMATE, ddp_module
from tests.helpers import trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[dict, dict, list[dict]]:
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.ddp_script", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    return a, b, [torch.load(folder / f"metrics-{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_agree_on_the_weights(ranks):
    a, b, _ = ranks
    assert torch.isfinite(a["weights"]).all()
    assert torch.equal(a["weights"], b["weights"])


def test_ranks_have_chains_of_their_own(ranks):
    """A module buffer would be overwritten from rank 0, and ``seed_everything`` alone would make equal chains."""
    a, b, _ = ranks
    assert not (a["x"].flatten(1)[:, None] == b["x"].flatten(1)).all(2).any()
    assert a["age"].sum() > 0
    assert b["age"].sum() > 0


def test_metrics_are_of_all_ranks_together(ranks):
    *_, (a, b) = ranks
    for name in ("test/accuracy", "test/ece", "ood/noise/auroc", "ood/transposed/auroc"):
        assert a[name] == b[name], name


def test_two_ranks_give_the_log_z_of_one(ranks, tmp_path):
    rank, _, (a, b) = ranks
    module = ddp_module()
    torch.nn.utils.vector_to_parameters(rank["weights"], module.parameters())
    alone = ESTIMATE.estimate(trainer(tmp_path), module.eval())
    assert a["ais/log_z"] == b["ais/log_z"] == pytest.approx(alone.log_z, abs=1e-5)
    assert a["ais/std_err"] == pytest.approx(alone.std_err, abs=1e-5)
