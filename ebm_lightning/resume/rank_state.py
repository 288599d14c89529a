"""The state of every rank that Lightning's checkpoint leaves out: chains, their generators, global random states.

Lightning saves the dictionary of rank 0 only. These functions gather the state of every rank into it, and distribute it
when the run resumes, on the same number of ranks or another. They work for any module that runs chains.
"""

import random
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ebm_lightning.chains import Chains
from ebm_lightning.rng import make_generator

RankState = dict[str, Any]


def gather_rank_states(
    trainer: L.Trainer | None, chains: Mapping[str, Chains], generator: torch.Generator | None, device: torch.device
) -> list[RankState]:
    """Chains and random states of all ranks, in rank order, as tensors and plain values; empty except on rank 0.

    A collective operation, as is ``Trainer.save_checkpoint``. Rank 0 holds the chains of all ranks in memory while it
    saves them. Without a trainer there is one rank.
    """
    own = rank_state(chains, generator, device) | {"step": trainer.global_step if trainer else 0}
    if trainer is None or trainer.world_size == 1:
        return [own]
    gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(own, gathered)
    return gathered or []


def rank_state(chains: Mapping[str, Chains], generator: torch.Generator | None, device: torch.device) -> RankState:
    """This rank's chains by name, their generator, and the global random states."""
    return {
        "chains": {name: _on_cpu(c.state_dict()) for name, c in chains.items()},
        "generator": None if generator is None else generator.get_state(),
        "device": device.type,
        "random": random_state(device),
    }


def load_rank_states(
    ranks: list[RankState], trainer: L.Trainer, chains: Mapping[str, Chains], generator: torch.Generator | None
) -> None:
    """Restore this rank's chains from a checkpoint, and the state of their generator.

    With another number of ranks, every chain goes to exactly one rank. Random streams cannot be split like that: each
    rank's generator is then reseeded from (its seed, rank, step), and the run is not bit-equal.
    """
    for name, own in chains.items():
        states = _saved_chains(ranks, name)
        if states is None:
            rank_zero_warn(f"The checkpoint has no '{name}': these chains are initialized.")
        elif all(states):
            own.load_sharded(states, trainer.global_rank, trainer.world_size)
    if generator is None:
        return
    saved = _own_state(ranks, trainer, generator.device.type)
    if saved is not None and saved["generator"] is not None:
        generator.set_state(saved["generator"])
    elif any(state["generator"] is not None for state in ranks):
        generator.manual_seed(_new_seed(generator.initial_seed(), "resumed", ranks, trainer))


def show_chains(ranks: list[RankState], trainer: L.Trainer | None, chains: Mapping[str, Chains]) -> None:
    """Put the saved chains of this rank in, before training sets them up. Chains that were not saved are reset."""
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    for name, own in chains.items():
        states = _saved_chains(ranks, name)
        own.reset()
        if states and all(states):
            own.load_sharded(states, rank, world_size)


def _saved_chains(ranks: list[RankState], name: str) -> list[dict[str, Any]] | None:
    """The saved states of the chains ``name``, empty for chains that were not set up; None if there are none."""
    states = [state["chains"][name] for state in ranks if name in state["chains"]]
    return states if len(states) == len(ranks) else None


def load_random_state(ranks: list[RankState], trainer: L.Trainer, device: torch.device) -> None:
    """Restore the global random states of PyTorch, NumPy and Python; with another number of ranks, reseed them."""
    saved = _own_state(ranks, trainer, device.type)
    if saved is not None:
        set_random_state(saved["random"], device)
        return
    rank_zero_warn(
        f"The checkpoint was saved by {len(ranks)} process(es) on {ranks[0]['device']} and this run has "
        f"{trainer.world_size} on {device.type}: every chain continues, but with new random numbers."
    )
    seed = _new_seed(torch.initial_seed(), "resumed globally", ranks, trainer)
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
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, python_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), python_gauss))
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


def _own_state(ranks: list[RankState], trainer: L.Trainer, device: str) -> RankState | None:
    """This rank's saved state, or None if the run has another number of ranks or another kind of device."""
    if len(ranks) != trainer.world_size or ranks[trainer.global_rank]["device"] != device:
        return None
    return ranks[trainer.global_rank]


def _new_seed(seed: int, stream: str, ranks: list[RankState], trainer: L.Trainer) -> int:
    """A seed that no other rank and no other resumed run gets."""
    return make_generator(seed, trainer.global_rank, trainer.world_size, stream, ranks[0]["step"]).initial_seed()


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}
