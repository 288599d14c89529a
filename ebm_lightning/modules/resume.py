"""What Lightning's checkpoint leaves out: the chains, generators and global random states of every rank.

Lightning writes the dictionary of rank 0. Here each rank's part is gathered into it, and dealt out again when the run
goes on, on as many ranks as before or on another number. Any module that runs chains can use these functions.
"""

import random
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ebm_lightning.chains import Chains
from ebm_lightning.streams import make_generator

RankState = dict[str, Any]


def gather_ranks(
    trainer: L.Trainer, chains: Mapping[str, Chains], generator: torch.Generator | None, device: torch.device
) -> list[RankState]:
    """Every rank's chains and random states, in the order of ranks, in tensors and plain values. Empty but on rank 0.

    A collective: every rank has to call it, as every rank has to call ``Trainer.save_checkpoint``. Rank 0 holds the
    chains of all ranks in memory while it writes them.
    """
    own = rank_state(chains, generator, device) | {"step": trainer.global_step}
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(own, everyone)
    return everyone or []


def rank_state(chains: Mapping[str, Chains], generator: torch.Generator | None, device: torch.device) -> RankState:
    """This process's chains by name, their generator, and the global random states."""
    return {
        "chains": {name: _on_cpu(c.state_dict()) for name, c in chains.items()},
        "generator": None if generator is None else generator.get_state(),
        "device": device.type,
        "random": random_state(device),
    }


def deal_ranks(
    ranks: list[RankState], trainer: L.Trainer, chains: Mapping[str, Chains], generator: torch.Generator | None
) -> None:
    """Give this rank its share of the chains in a checkpoint, and the generator of the chains its state back.

    On another number of ranks no chain is lost and none is on two ranks, but streams of random numbers cannot be
    dealt: each rank's is then new, of (seed of ``generator``, rank, step), and the run is not bit-equal.
    """
    for name, own in chains.items():
        shares = [state["chains"][name] for state in ranks if name in state["chains"]]
        if len(shares) == len(ranks):
            own.deal(shares, trainer.global_rank, trainer.world_size)
        else:
            rank_zero_warn(f"The checkpoint holds no '{name}': they start anew.")
    if generator is None:
        return
    mine = _own_state(ranks, trainer, generator.device.type)
    if mine is not None and mine["generator"] is not None:
        generator.set_state(mine["generator"])
    else:
        stream = (trainer.global_rank, trainer.world_size, "resumed", ranks[0]["step"])
        generator.manual_seed(make_generator(generator.initial_seed(), *stream).initial_seed())


def deal_random_state(ranks: list[RankState], trainer: L.Trainer, device: torch.device) -> None:
    """Give PyTorch's, NumPy's and Python's global generators back their states, or, on another number of ranks, new
    ones that no two ranks share."""
    mine = _own_state(ranks, trainer, device.type)
    if mine is not None:
        set_random_state(mine["random"], device)
        return
    rank_zero_warn(
        f"The checkpoint was saved by {len(ranks)} process(es) on {ranks[0]['device']} and this run has "
        f"{trainer.world_size} on {device.type}: every chain goes on, with random numbers that are new."
    )
    stream = (trainer.global_rank, trainer.world_size, "resumed globally", ranks[0]["step"])
    seed = make_generator(torch.initial_seed(), *stream).initial_seed()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random states of PyTorch (of the CPU and of ``device``), NumPy and Python."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.tensor(list(keys), dtype=torch.int64), position, has_gauss, gauss],
        "python": [version, torch.tensor(words), python_gauss],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Take back what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, python_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), python_gauss))
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


def same_keys(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """``state`` under the names that ``module`` uses, whichever of the two has parts wrapped by ``torch.compile``.

    Raises:
        ValueError: A weight has another shape in ``module``.
    """
    own = {_uncompiled(name): (name, value) for name, value in module.state_dict().items()}
    for name, value in state.items():
        here = own.get(_uncompiled(name), (name, value))[1]
        if here.shape != value.shape:
            raise ValueError(
                f"'classifier' should be the network that was saved, got '{name}' of shape {tuple(here.shape)} for "
                f"{tuple(value.shape)} in the checkpoint. Build the same network, or name another checkpoint."
            )
    return {own.get(_uncompiled(name), (name, value))[0]: value for name, value in state.items()}


def _uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _own_state(ranks: list[RankState], trainer: L.Trainer, device: str) -> RankState | None:
    if len(ranks) != trainer.world_size or ranks[trainer.global_rank]["device"] != device:
        return None
    return ranks[trainer.global_rank]


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}
