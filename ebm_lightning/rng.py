"""Independent random streams: one generator for each (seed, rank, purpose).

Two ranks that seed their chains alike compute the same chains twice, and two purposes with the same seed are
correlated. The library therefore seeds every generator here.
"""

import hashlib

import torch


def make_generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with a hash of ``seed`` and ``stream``. The same arguments give the same numbers.

    The global random state is neither read nor changed.

    Arguments:
        seed: Seed of the run.
        stream: What the numbers are for, such as ``(rank, "chains")``. Different streams are independent.
        device: Device of the generator.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def seed_and_device(generator: torch.Generator | None) -> tuple[int, torch.device]:
    """A seed drawn from ``generator``, and its device. None draws from the global CPU generator."""
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device)), device
