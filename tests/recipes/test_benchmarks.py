"""The benchmarks, in short runs, and what they have in common."""

import json
from dataclasses import replace

import pytest
import torch

from ebm_lightning import LogZ
from tests.helpers import recipe
from tests.recipes.conftest import run

common = recipe("benchmarks/common.py")


def test_interleave_times_every_job_once_per_round():
    calls = []
    jobs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    durations = common.interleave(jobs, 3)
    assert {name: len(each) for name, each in durations.items()} == {"a": 3, "b": 3}
    assert [sorted(calls[i : i + 2]) for i in range(0, 8, 2)] == [["a", "b"]] * 4, "a warm-up and three rounds"
    assert all(duration.wall >= 0 for each in durations.values() for duration in each)


def test_timed_waits_for_the_job_and_returns_its_result():
    duration, result = common.timed(lambda: torch.rand(400, 400, dtype=torch.float64).matrix_exp().shape)
    assert result == (400, 400)
    assert duration.wall > 0
    assert duration.cpu > 0


def test_quartiles_of_ratios():
    assert common.ratio_quartiles([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)
    assert common.quartiles([0.5]) == (0.5, 0.5, 0.5)
    assert f"{common.Quartiles(1.0, 2.0, 3.0):.1f}" == "2.0 [1.0, 3.0]"


def test_tables_are_markdown(capsys):
    common.print_table(("", "ms"), [("a", 1), ("b", 2)])
    assert capsys.readouterr().out.splitlines() == ["", "|  | ms |", "|---|---|", "| a | 1 |", "| b | 2 |"]


def test_sampler_ratios_use_the_chosen_clock():
    sampler = recipe("benchmarks/sampler.py")
    durations = {
        name: [common.Seconds(*seconds)] * 3
        for name, seconds in {sampler.LIMIT: (1.0, 2.0), sampler.JEM_LOOP: (2.0, 3.0), "ours": (0.5, 1.0)}.items()
    }
    wall, cpu = (sampler.summary(durations, "ours", clock, 10) for clock in ("wall", "cpu"))
    assert (wall["gain"].median, wall["cost"], cpu["gain"].median, cpu["cost"]) == (4, 0.5, 3, 0.5)
    assert (wall["ms_per_step"], wall["cpu_ms_per_step"]) == (25, 50)
    assert cpu["chain_steps_per_second"] == wall["chain_steps_per_second"] / 2 == 10 * sampler.STEPS


def test_sampler_accepts_only_contenders_with_the_same_chains():
    sampler = recipe("benchmarks/sampler.py")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
    torch.nn.init.normal_(net[1].weight, std=0.01)  # so small that no chain reaches a wall
    x = torch.rand(4, 1, 4, 4) - 0.5
    chains = {name: chain for name, chain in sampler.all_contenders(net, (1, 4, 4)).items() if "compiled" not in name}
    assert set(sampler.check_chains(chains, net, x)) == chains.keys() - {sampler.FLOOR}
    with pytest.raises(RuntimeError, match="shifted computes different chains"):
        sampler.check_chains({"shifted": lambda x: chains[sampler.LIMIT](x) + 1e-3}, net, x)


@pytest.mark.slow
def test_ais_is_timed_against_the_sampler_and_on_two_processes(tmp_path):
    tiny = ("--rounds", "2", "--evaluations", "5", "--rank_rounds", "1", "--num_chains", "20")
    done = run(tmp_path, "benchmarks/ais.py", *tiny, "--shortest", "80", "--growth", "[1,2]")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "ais-0"
    results = json.loads((folder / "ais.json").read_text())
    assert all(len(row["ratio"]) == 3 and row["pilot"] > 0 for row in results["throughput"].values())
    assert len(results["ranks"]["efficiency"]) == 3
    assert [row["chain_steps"] for row in results["cost"].values()] == [[80, 160]] * 3
    assert (folder / "ais_cost.png").stat().st_size > 10_000
    assert "annealing, chain-steps/s" in done.stdout


@pytest.mark.slow
def test_log_z_in_bf16_is_compared_with_float32(digits, tmp_path):
    """Both estimates of the shift agree."""
    checkpoint = (digits[0] / "checkpoints" / "model.ckpt").resolve()
    arguments = ("--checkpoints", f"[{checkpoint}]", "--temperatures", "20", "--num_chains", "200", "--seeds", "2")
    done = run(tmp_path, "benchmarks/bf16_log_z.py", *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "bf16_log_z.json").read_text())
    assert row["rounding"]["deviation"] > 0, "the body is rounded"
    assert abs(row["difference"] - row["shift"]) < 5 * row["difference_std_err"] + 1e-3
    assert len(row["turns"]) == 2


GRADIENTS = (
    *("--contenders", "[SGLD from noise,PYLD from class Gaussians]", "--sampler_steps", "[1,2]", "--seeds", "[0]"),
    *("--setting.max_steps", "3", "--setting.width", "2", "--setting.buffer_size", "70"),
    *("--setting.ais_temperatures", "5", "--setting.ais_num_chains", "20", "--output", "out"),
)


@pytest.mark.slow
def test_gradients_resumes_and_plots(tmp_path):
    """A second start trains nothing, plots again, and rejects runs with another setting."""
    script = "benchmarks/gradients.py"
    done = run(tmp_path, script, *GRADIENTS)
    assert done.returncode == 0, done.stderr
    assert "runs: 100%" in done.stderr, "a progress bar is shown"
    results = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert {(r["contender"], r["sampler_steps"]) for r in results["runs"]} == {
        (name, k) for name in ("SGLD from noise", "PYLD from class Gaussians") for k in (1, 2)
    }
    for r in results["runs"]:
        assert {"bits", "bits_std_err", "auroc", "accuracy", "seconds", "metrics"} <= set(r)
    assert 0 < results["first_block_cost"]["flops"] < 1
    (tmp_path / "out" / "gradients.png").unlink()
    again = run(tmp_path, script, *GRADIENTS)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "gradients.json").read_text())["runs"] == results["runs"]
    assert (tmp_path / "out" / "gradients.png").stat().st_size > 10_000
    assert again.stdout.count("| SGLD from noise |") == 2
    other = run(tmp_path, script, *GRADIENTS, "--setting.max_steps", "4")
    assert other.returncode != 0
    assert "'output' should hold runs of this setting" in other.stderr


@pytest.mark.slow
def test_gradients_rejects_unknown_contenders(tmp_path):
    done = run(tmp_path, "benchmarks/gradients.py", "--contenders", "[HMC from noise]")
    assert done.returncode != 0
    assert "'contenders' should be among SGLD from noise," in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_step_is_compared_with_its_parts(tmp_path):
    few = ("--networks", "[small]", "--rounds", "2", "--sampler_steps", "2")
    done = run(tmp_path, "benchmarks/training_step.py", *few)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "training_step.json").read_text())["small"]
    assert len(row["time_ratio"]) == 3
    assert row["memory_ratio"] > 0
    assert "| small |" in done.stdout


@pytest.mark.slow
def test_divergence_runs_every_trainer(tmp_path):
    few = ("--seeds", "[0]", "--max_steps", "3", "--width", "2", "--output", "results.jsonl")
    done = run(tmp_path, "benchmarks/divergence.py", *few)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["trainer"] for row in rows] == ["plain loop", "defaults", "guard"]
    assert all(row["max_energy"] > 0 for row in rows)


def test_adversarial_table_counts_runs_that_are_reliable_and_wrong(tmp_path, capsys):
    adversarial = recipe("benchmarks/adversarial.py")
    adversarial.main(("narrow 1e-2",), seeds=2, output=tmp_path / "runs.json")
    out = capsys.readouterr().out
    assert "| narrow 1e-2 | -7.372 | 2 |" in out
    assert "Reliable and wrong: 0 of 2 runs." in out
    assert [run["seed"] for run in json.loads((tmp_path / "runs.json").read_text())] == [0, 1]
    target = adversarial.TARGETS["narrow 1e-2"]()
    answers = {"far": (0.41, 0.1), "near": (0.39, 0.1), "close": (0.04, 0.0), "unknown": (float("nan"), 0.1)}
    runs = {}
    for name, (error, std_err) in answers.items():
        answer = LogZ(target.truth + error, std_err)
        runs[name] = adversarial.outcome(name, replace(target, estimate=lambda *_, z=answer: z), 0, {})
    assert [name for name, run in runs.items() if run.wrong] == ["far", "unknown"]
    honest = replace(target, estimate=lambda *_: LogZ(9.0, 0.1, why="The weights are worth 3 chains."))
    assert not adversarial.outcome("honest", honest, 0, {}).wrong


@pytest.mark.parametrize("seed", range(5))
def test_random_targets_have_the_log_z_that_is_stated(seed):
    """Importance sampling backwards: the mean of q / p over exact samples is 1 / Z. No chains, so no shared error."""
    known = recipe("benchmarks/known_energies.py")
    rng = torch.Generator().manual_seed(seed)
    energy = (
        known.Student(3, 2),
        known.Valley(2, 0.5, 2.0),
        known.Funnel(3, 1.5),
        known.RotatedGaussian(torch.tensor([0.5, 1.0, 2.0])),
        known.Spikes(torch.tensor([[0.4, 0.5], [0.5, 0.6]]), 0.05, torch.tensor([1.0, 2.0])),
    )[seed]
    x = energy.sample(100_000, rng).double()
    center, std = (0.5, 0.05) if seed == 4 else (1.0, 0.25) if seed == 1 else (0.0, 0.4)
    log_q = torch.distributions.Normal(center, std).log_prob(x).sum(1)
    w = (log_q + energy(x.float())).exp()
    z_score = (w.mean() - torch.tensor(-energy.log_z).exp()) / (w.std() / len(w) ** 0.5)
    assert abs(z_score) < 5
