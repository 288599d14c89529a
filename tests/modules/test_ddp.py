"""Two processes under Lightning's DDP, with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import trainer
from tests.modules.ddp_script import ESTIMATE, ddp_module

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[dict, dict, list[dict]]:
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.modules.ddp_script", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    return a, b, [torch.load(folder / f"metrics-{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_agree_on_the_weights(ranks):
    a, b, _ = ranks
    assert torch.isfinite(a["weights"]).all()
    assert torch.equal(a["weights"], b["weights"])


def test_ranks_have_different_chains(ranks):
    """DDP would overwrite a module buffer from rank 0, and ``seed_everything`` alone would make equal chains."""
    a, b, _ = ranks
    assert not (a["x"].flatten(1)[:, None] == b["x"].flatten(1)).all(2).any()
    assert a["age"].sum() > 0
    assert b["age"].sum() > 0


def test_metrics_are_reduced_over_ranks(ranks):
    *_, (a, b) = ranks
    for name in ("test/accuracy", "test/ece", "ood/noise/auroc", "ood/transposed/auroc"):
        assert a[name] == b[name], name


def test_two_ranks_estimate_the_same_log_z_as_one(ranks, tmp_path):
    rank, _, (a, b) = ranks
    module = ddp_module()
    torch.nn.utils.vector_to_parameters(rank["weights"], module.parameters())
    single = ESTIMATE.estimate(trainer(tmp_path), module.eval())
    assert a["ais/log_z"] == b["ais/log_z"] == pytest.approx(single.log_z, abs=1e-5)
    assert a["ais/std_err"] == pytest.approx(single.std_err, abs=1e-5)
