"""log Z of a trained model, with its error: ``python recipes/estimate_log_z.py --checkpoint model.ckpt``."""

import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from tqdm import tqdm

from ebm_lightning import GHMC, HMC, JEM, MALA, ais
from ebm_lightning.callbacks.ais_log_z import ess_curve
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator

KERNELS = {"ghmc": GHMC(), "hmc": HMC(), "mala": MALA()}


def main(
    checkpoint: Path,
    temperatures: int = 500,
    chains: int = 1000,
    kernel: Literal["ghmc", "hmc", "mala"] = "ghmc",
    resample: bool = True,
    chunk_size: int | None = None,
    bf16: bool = False,
    device: str = "cpu",
    seed: int = 0,
    output: Path | None = None,
) -> dict[str, object]:
    """Estimate log Z and the prior over classes of a JEM checkpoint of one of this library's networks.

    Args:
        checkpoint: As Lightning wrote it.
        temperatures: Steps from the reference density to the model.
        chains: In all.
        kernel: What moves the chains.
        resample: Resample where the effective share of chains falls under a half.
        chunk_size: Most chains to run at once.
        bf16: Run the network's body in bfloat16; the head and everything after it stay in float32.
        device: Where to run, such as cuda.
        seed: Of the chains.
        output: Folder for log_z.json and the picture; new or empty. Nothing is written without it.
    """
    if output is not None:
        results_folder(output, "log_z")
    module = JEM.load_from_checkpoint(checkpoint, weights_only=True, map_location=device).eval()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
        result = ais(
            module.energy,
            module.support,
            kernel=KERNELS[kernel],
            temperatures=temperatures,
            chains=chains,
            resample=resample,
            chunk_size=chunk_size,
            generator=make_generator(seed, "estimate", device=device),
            progress=lambda loop: tqdm(loop, "annealing"),
        )
    low, high = result.interval(0.95)
    figures: dict[str, object] = {
        "log_z": result.log_z,
        "std_err": result.std_err,
        "interval": [low, high],
        "ess": result.ess,
        "lower": result.lower,
        "reliable": result.reliable,
        "prior": result.prior.tolist(),
        "gradient_evaluations": result.gradient_evaluations,
    }
    print("\n".join(f"{name:24}{value}" for name, value in figures.items()))
    if not result.reliable:
        print("This estimate is UNRELIABLE: raise --temperatures or --chains.")
    if output is not None:
        (output / "log_z.json").write_text(json.dumps(figures, indent=2))
        ess_curve(result).savefig(output / "ess.png", dpi=120)
    return figures


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
