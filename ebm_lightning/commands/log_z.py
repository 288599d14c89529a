"""``ebm-lightning log-z``: log Z of a trained model, with its error."""

import json
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ebm_lightning.callbacks.ais_log_z import plot_ess
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.models import load
from ebm_lightning.partition import ais
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, MALA

KERNELS = {"ghmc": GHMC(), "hmc": HMC(), "mala": MALA()}


def main(
    checkpoint: str,
    temperatures: int | None = 500,
    num_chains: int = 1000,
    kernel: Literal["ghmc", "hmc", "mala"] | None = None,
    resample: bool = True,
    chunk_size: int | None = None,
    bf16: bool = False,
    device: str = "cpu",
    seed: int = 0,
    output: Path | None = None,
) -> dict[str, object]:
    """Estimate log Z and the class prior of a model whose network is one of this library's.

    Args:
        checkpoint: Checkpoint, or the name of a model that comes with the package, such as digits.
        temperatures: Annealing steps from the reference density to the model; null for as many as the path needs.
        num_chains: Total number of annealed chains.
        kernel: Kernel that moves the chains; by default GHMC, or redrawn noise relative to an autoregressive density.
        resample: Resample chains when their relative effective sample size falls below one half.
        chunk_size: Largest number of chains to run at once.
        bf16: Run the network's body in bfloat16. The head and everything after it stay in float32.
        device: Device, such as cuda.
        seed: Seed of the chains.
        output: Folder for log_z.json and the figure, new or empty. By default nothing is written.
    """
    if output is not None:
        results_folder(output, "log_z")
    module = load(checkpoint).to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
        result = ais(
            module.chain_energy,
            module.support,
            kernel=None if kernel is None else KERNELS[kernel],
            temperatures=temperatures,
            num_chains=num_chains,
            resample=resample,
            chunk_size=chunk_size,
            generator=make_generator(seed, "estimate", device=device),
            progress=lambda loop: tqdm(loop, "annealing"),
        )
    low, high = result.interval(0.95)
    metrics: dict[str, object] = {
        "log_z": result.log_z,
        "std_err": result.std_err,
        "interval": [low, high],
        "ess": result.ess,
        "lower": result.lower,
        "reliable": result.reliable,
        "prior": result.prior.tolist(),
        "gradient_evaluations": result.gradient_evaluations,
    }
    print("\n".join(f"{name:24}{value}" for name, value in metrics.items()))
    if not result.reliable:
        print(f"This estimate of {checkpoint} is UNRELIABLE: {result.why}")
    if output is not None:
        (output / "log_z.json").write_text(json.dumps(metrics, indent=2))
        plot_ess(result).savefig(output / "ess.png", dpi=120)
        print(f"log_z.json and ess.png are in {output.resolve()}")
    return metrics
