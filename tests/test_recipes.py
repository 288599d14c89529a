"""The recipes as a person runs them: from the command line, in a folder of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ebm_lightning import JEM, ClassGaussians, ConditionalEBM, ReplayBuffer
from ebm_lightning.data import ImageArrays
from ebm_lightning.networks import MLP
from tests.helpers import RECIPES, recipe
from tests.pictures import made_up, write_arrays, write_idx

SETS = ("noise", "shuffled", "inverted", "transposed", "flipped", "interpolated")
SCORES = ("log_density", "max_probability", "negative_entropy", "approximate_mass")
KEYS = {"test/accuracy", "test/nll", "test/ece", *(f"ood/{name}/auroc" for name in SETS)}


AIS = ("--ais_temperatures", "5", "--ais_chains", "20")


def run(folder: Path, recipe: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str(RECIPES / recipe), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "run.yaml").write_text(
        "epochs: 2\nwidth: 4\nstep_size: 0.2\nsteps: 2\nais_temperatures: 5\nais_chains: 20\n"
    )
    done = run(folder, "digits.py", "--config", "run.yaml", "--seed", "3")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits-0", done.stdout + done.stderr


def test_digits_writes_one_folder_with_everything(digits):
    folder, _ = digits
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= KEYS | {f"baseline/{key}" for key in KEYS} | {"seconds"}
    assert all(isinstance(value, float) for value in metrics.values())
    pictures = {p.name for p in folder.glob("*.png")}
    assert pictures == {
        "samples-chains.png",
        "test-reliability.png",
        "ais-ess.png",
        *(f"ood-{name}.png" for name in SETS),
    }
    assert JEM.load_from_checkpoint(folder / "checkpoints" / "model.ckpt", weights_only=True).sampler.step_size == 0.2


def test_digits_shows_both_models_and_the_energies(digits):
    _, printed = digits
    line = next(line for line in printed.splitlines() if line.startswith("ood/transposed/auroc"))
    assert len(line.split()) == 3
    assert "train/energy_pos=" in printed
    assert "train/energy_neg=" in printed


def test_log_z_of_a_checkpoint(digits, tmp_path):
    folder, _ = digits
    checkpoint = (folder / "checkpoints" / "model.ckpt").resolve()
    arguments = ("--checkpoint", str(checkpoint), "--temperatures", "9", "--chains", "40", "--output", "out")
    done = run(tmp_path, "estimate_log_z.py", *arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "log_z.json").read_text())
    assert figures["interval"][0] < figures["log_z"] < figures["interval"][1]
    assert len(figures["prior"]) == 10
    assert ("UNRELIABLE" in done.stdout) is not figures["reliable"]
    assert (tmp_path / "out" / "ess.png").exists()


SHORT = (
    *("--ood_images", "60", "--samples", "40", "--sample_steps", "3", "--attacked_images", "20", "--attack_steps", "2"),
    *("--refine_steps", "[0,2]", "--linf", "[0.1]", "--l2", "[0.5]", "--noise", "[0.5]", "--bins", "10", *AIS),
)
MEASURED = {
    *("test/accuracy", "test/nll", "test/ece", "ais/log_z", "ais/bits_per_dim", "ais/bits_per_dim_std_err"),
    *(f"ood/{name}/{score}/{what}" for name in SETS for score in SCORES for what in ("auroc", "fpr95")),
    *(f"ood/{name}/auroc" for name in SETS),
    *(f"robust/{name}" for name in ("clean", "linf_0.1", "l2_0.5", "noise_0.5", "images")),
    *("refine/accuracy_0", "refine/accuracy_2", "refine/energy_change_2"),
}


@pytest.fixture(scope="module")
def evaluated(digits, tmp_path_factory) -> tuple[Path, str]:
    """With a set of real images beside the made ones."""
    runs, folder = digits[0].resolve(), tmp_path_factory.mktemp("evaluated")
    write_arrays(folder)
    models = [runs / "checkpoints" / "model.ckpt", runs / "baseline" / "checkpoints" / "model.ckpt"]
    arguments = ("--checkpoint", str(models[0]), "--baseline", str(models[1]), "--data", "Digits", "--output", "out")
    done = run(folder, "evaluate.py", *arguments, "--ood", "[images.npz]", "--ood_root", ".", *SHORT)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout + done.stderr


def test_an_evaluation_measures_both_models(evaluated):
    folder, printed = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    names = MEASURED | {f"samples/{name}_classifier" for name in ("fid", "kid", "is")}
    names |= {"samples/fid_classifier_floor", "samples/kid_classifier_floor", "ood/images.npz/auroc"}
    assert set(metrics) >= names | {f"baseline/{name}" for name in names} | {"seconds", "test/images", "test/ece_bins"}
    assert (metrics["test/images"], metrics["test/ece_bins"], metrics["ood/images"]) == (450, 10, 60)
    assert metrics["refine/accuracy_0"] == metrics["robust/clean"]
    assert metrics["samples/fid_classifier_floor"] == metrics["baseline/samples/fid_classifier_floor"], "one judge"
    line = next(line for line in printed.splitlines() if line.startswith("ood/transposed/auroc"))
    assert len(line.split()) == 3
    assert "annealing" in printed, "a bar shows how far it is"


def test_an_evaluation_is_one_page_that_needs_nothing_else(evaluated):
    folder, _ = evaluated
    text = (folder / "report.html").read_text()
    pictures = list(folder.glob("*/*.png"))
    assert text.count("data:image/png;base64,") == len(pictures) == 2 * (len(SETS) + 1 + 5)
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    for heading in ("The classifier", "Foreign images", "Likelihood", "Samples", "Robustness", "Refined inputs"):
        assert f"<h2>{heading}</h2>" in text
    assert "NETWORKS DIFFER" not in text


def test_an_evaluation_agrees_with_the_run_it_is_of(digits, evaluated):
    """The recipe measured the same weights on the same images, with all of them and 15 bins."""
    trained, found = (json.loads((folder / "metrics.json").read_text()) for folder in (digits[0], evaluated[0]))
    for name in ("test/accuracy", "test/nll", "baseline/test/accuracy", "baseline/test/nll"):
        assert found[name] == pytest.approx(trained[name], rel=1e-5)


def test_fresh_samples_begin_where_the_model_s_own_chains_did(tmp_path):
    """Fitted to the images for p(x), each once, without a trace on the global random state."""
    data = ImageArrays(write_arrays(tmp_path), 8, 16, noise_std=0.5, separate_batch_size=4)
    fitted, chains = recipe("evaluate.py").fitted, ReplayBuffer(8, start=ClassGaussians(1e-2))
    model = JEM(MLP(192, 3, (4,)), 3, data.support, chains=chains)
    state = torch.get_rng_state()
    start = fitted("model", model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert start is model.chains.start
    assert start.counts.sum() == len(data.train_gen) == 44
    x, y = data.train_gen.levels, data.train_gen.labels
    means = torch.stack([(x[y == k] + 0.5).flatten(1).double().mean(0) / 128 - 1 for k in range(3)])
    torch.testing.assert_close(start.means.double(), means, atol=0.005, rtol=0)
    assert fitted("reference", model, data) is None
    other = ClassGaussians(1.0)
    assert fitted(other, model, data) is other
    assert other.counts.sum() == 44
    assert fitted("model", ConditionalEBM(MLP(192, 3, (4,)), 3, data.support), data) is None


def test_ratios_are_of_the_clock_that_was_asked_for():
    sampler = recipe("benchmarks/sampler.py")
    seconds = {sampler.LIMIT: [(1.0, 2.0)] * 3, sampler.JEM_LOOP: [(2.0, 3.0)] * 3, "ours": [(0.5, 1.0)] * 3}
    wall, cpu = (sampler.row(seconds, "ours", clock, 10, {}) for clock in (0, 1))
    assert (wall["gain"], wall["cost"], cpu["gain"], cpu["cost"]) == (4, 0.5, 3, 0.5)
    assert (wall["ms_per_step"], wall["cpu_ms_per_step"]) == (25, 50)
    assert cpu["chain_steps_per_second"] == wall["chain_steps_per_second"] / 2 == 10 * sampler.STEPS


def test_an_evaluation_without_a_baseline_says_so(digits, tmp_path):
    checkpoint = str((digits[0] / "baseline" / "checkpoints" / "model.ckpt").resolve())
    fewer = ("--refine_steps", "[]", "--ais_temperatures", "0", "--ood_images", "20", "--progress_bar", "false")
    fewer += ("--start", "ebm_lightning.ClassGaussians")
    done = run(tmp_path, "evaluate.py", "--checkpoint", checkpoint, "--data", "Digits", *SHORT, *fewer)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "eval-0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"samples/fid_model", "samples/fid_model_start"} <= set(metrics)
    assert "ClassGaussians, fitted to the training images" in (folder / "report.html").read_text()
    assert not any(name.startswith(("baseline/", "ais/", "refine/")) for name in metrics)
    assert "No plain classifier was given" in (folder / "report.html").read_text()
    done = run(tmp_path, "evaluate.py", "--checkpoint", checkpoint, "--data", "Digits", "--output", str(folder))
    assert done.returncode != 0
    assert "'output' should be a new or empty folder" in done.stderr


def test_digits_never_writes_over_results(digits):
    folder, _ = digits
    before = (folder / "metrics.json").read_text()
    done = run(folder, "digits.py", "--output", str(folder))
    assert done.returncode != 0
    assert "'output' should be a new or empty folder" in done.stderr
    assert (folder / "metrics.json").read_text() == before


def test_every_option_is_explained(tmp_path):
    done = run(tmp_path, "digits.py", "--help")
    assert done.returncode == 0
    for option in ("--seed", "--output", "--logger {csv,tensorboard,wandb}", "--config", "--step_size"):
        assert option in done.stdout
    config = yaml.safe_load(run(tmp_path, "digits.py", "--print_config").stdout)
    assert config["steps"] == 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ood", "[noise,svhn]"), "svhn"),
        (("--step_size", "-1"), "'step_size' should be positive, got -1.0"),
        (("--noise_std", "-0.1"), "'noise_std' should be 0 or positive, got -0.1"),
        (("--buffer_size", "32"), "'size' should be at least the batch size 64"),
        (("--epochs", "many"), "epochs"),
    ],
)
def test_bad_options_name_themselves(tmp_path, arguments, message):
    done = run(tmp_path, "digits.py", "--epochs", "1", *arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_generative_weight_zero_is_the_baseline(tmp_path):
    done = run(
        tmp_path, "digits.py", "--epochs", "1", "--width", "4", "--generative_weight", "0", "--output", "out", *AIS
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(metrics[key] == metrics[f"baseline/{key}"] for key in KEYS)


def test_rings_records_log_z(tmp_path):
    done = run(tmp_path, "rings.py", "--epochs", "1", "--output", "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert abs(metrics["ais/log_z"] - metrics["log_z"]) < 6 * metrics["ais/std_err"] + 1e-3
    assert {"log_z", "energy_data", "energy_samples", "seconds"} <= set(metrics)
    assert metrics["log_likelihood"] == pytest.approx(-metrics["energy_data"] - metrics["log_z"])
    assert (tmp_path / "out" / "density.png").exists()
    assert torch.load(tmp_path / "out" / "model.ckpt", weights_only=True)["state_dict"]


def test_the_bias_of_contrastive_divergence_is_drawn(tmp_path):
    done = run(tmp_path, "contrastive_divergence.py", "--chains", "400", "--longest", "6", "--output", "out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "bias.json").read_text())
    for start in ("CD-k, from the data", "short runs, from uniform noise"):
        bias = results[start]["exact"]
        assert len(bias) == 6
        assert bias == sorted(bias, reverse=True)
    assert (tmp_path / "out" / "cd_bias.png").stat().st_size > 10_000


def test_statistical_physics_holds_estimates_against_truth(tmp_path):
    arguments = ("--chains", "2000", "--sweeps", "20", "--temperatures", "50", "--output", "out")
    done = run(tmp_path, "statistical_physics.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    said = " ".join(row["what"] for row in rows)
    assert all(word in said for word in ("tanh", "sigmoid", "ABA", "log Z"))
    assert (tmp_path / "out" / "statistical_physics.png").stat().st_size > 10_000


@pytest.mark.parametrize("recipe", ["mnist_rbm.py", "mnist_rbm_log_z.py"])
def test_rbm_recipes_on_mnist(recipe, tmp_path):
    data = Path(os.environ.get("EBM_DATA", RECIPES.parent.parent / "shared" / "data"))
    if not (data / "MNIST").is_dir():
        pytest.skip(f"MNIST is not in {data}; EBM_DATA names the folder that holds it.")
    arguments = ("--data", str(data), "--size", "500", "--epochs", "1", "--hidden", "8", "--output", "out")
    extra = ("--temperatures", "20", "--chains", "20") if "log_z" in recipe else ()
    done = run(tmp_path, recipe, *arguments, *extra)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_trains_both_models_and_keeps_their_checkpoints(name, tmp_path):
    write_idx(tmp_path / "data", name, sizes=(5200, 20))
    config = ["--config", str(RECIPES / "fashionmnist.yaml")] if name == "FashionMNIST" else []
    small = ["--width", "2", "--batch_size", "50", "--generative_batch_size", "20", "--chain_steps", "2"]
    few = ["--steps", "3", "--baseline_steps", "3", "--buffer_size", "40", "--evaluate", "false"]
    done = run(tmp_path, "mnist.py", *config, "--root", "data", *small, *few, "--progress_bar", "false")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / f"{name.lower()}-0"
    assert set(json.loads((folder / "training.json").read_text())["val/accuracy"]) == {"baseline", "jem"}
    assert JEM.load_from_checkpoint(folder / "jem.ckpt", weights_only=True).generative_weight == 1
    assert JEM.load_from_checkpoint(folder / "baseline.ckpt", weights_only=True).generative_weight == 0
    assert (folder / "samples-chains.png").exists()


def test_own_model_trains_on_a_folder_of_images_and_goes_on(tmp_path):
    for i in range(40):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_up(1, (8, 8, 3), seed=i)[0][0].numpy()).save(tmp_path / "images" / str(i % 2) / f"{i}.png")
    for epochs in ("1", "2"):
        done = run(tmp_path, "own_model.py", "--images", "images", "--size", "8", "--epochs", epochs)
        assert done.returncode == 0, done.stderr
        assert ("Restored all states" in done.stderr) == (epochs == "2")
    assert (tmp_path / "runs" / "own_model" / "last.ckpt").exists()


def test_own_model_is_short():
    assert len((RECIPES / "own_model.py").read_text().splitlines()) < 60


def test_annealing_is_timed_beside_the_sampler_and_on_two_processes(tmp_path):
    tiny = ("--rounds", "2", "--evaluations", "5", "--rank_rounds", "1", "--rank_chains", "20")
    done = run(tmp_path, "benchmarks/ais.py", *tiny, "--shortest", "80", "--growth", "[1,2]")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "ais-0"
    figures = json.loads((folder / "ais.json").read_text())
    assert all(len(row["ratio"]) == 3 and row["pilot"] > 0 for row in figures["throughput"].values())
    assert len(figures["ranks"]["efficiency"]) == 3
    assert [row["chain_steps"] for row in figures["cost"].values()] == [[80, 160]] * 3
    assert (folder / "ais_cost.png").stat().st_size > 10_000
    assert "annealing, chain-steps/s" in done.stdout


def test_log_z_in_bf16_is_held_against_float32(digits, tmp_path):
    """Both ways of knowing the shift agree, and it is small beside the spread of energies."""
    checkpoint = (digits[0] / "checkpoints" / "model.ckpt").resolve()
    arguments = ("--checkpoints", f"[{checkpoint}]", "--temperatures", "20", "--chains", "200", "--seeds", "2")
    done = run(tmp_path, "benchmarks/bf16_log_z.py", *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "bf16_log_z.json").read_text())
    assert row["rounding"]["deviation"] > 0, "the body is rounded"
    assert abs(row["difference"] - row["shift"]) < 5 * row["difference_std_err"] + 1e-3
    assert len(row["turns"]) == 2


GRADIENTS = (
    *("--contenders", "[SGLD from noise,PYLD from class Gaussians]", "--steps", "[1,2]", "--seeds", "[0]"),
    *("--setting.iterations", "3", "--setting.width", "2", "--setting.buffer_size", "70"),
    *("--setting.ais_temperatures", "5", "--setting.ais_chains", "20", "--output", "out"),
)


def test_what_gradients_buy_is_measured_once(tmp_path):
    """A second start trains nothing, draws again, and takes no run of another setting for its own."""
    recipe = "benchmarks/gradients.py"
    done = run(tmp_path, recipe, *GRADIENTS)
    assert done.returncode == 0, done.stderr
    assert "runs: 100%" in done.stderr, "a bar shows how far it is"
    held = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert {(r["contender"], r["steps"]) for r in held["runs"]} == {
        (name, k) for name in ("SGLD from noise", "PYLD from class Gaussians") for k in (1, 2)
    }
    for r in held["runs"]:
        assert {"bits", "bits_std_err", "auroc", "accuracy", "seconds", "figures"} <= set(r)
    assert 0 < held["share"]["flops"] < 1
    (tmp_path / "out" / "gradients.png").unlink()
    again = run(tmp_path, recipe, *GRADIENTS)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "gradients.json").read_text())["runs"] == held["runs"]
    assert (tmp_path / "out" / "gradients.png").stat().st_size > 10_000
    assert again.stdout.count("| SGLD from noise |") == 2
    other = run(tmp_path, recipe, *GRADIENTS, "--setting.iterations", "4")
    assert other.returncode != 0
    assert "'output' should hold runs of this setting" in other.stderr


def test_gradients_names_contenders_that_there_are(tmp_path):
    done = run(tmp_path, "benchmarks/gradients.py", "--contenders", "[HMC from noise]")
    assert done.returncode != 0
    assert "'contenders' should be among SGLD from noise," in done.stderr
    assert not list(tmp_path.iterdir())
