"""Independent streams of random numbers, one for each (seed, rank, purpose).

Chains that share a seed across ranks are one set of chains paid for many times, and two purposes that share a seed
correlate what should be independent. Every draw of this library therefore comes from a generator made here.
"""

import hashlib

import torch


def make_generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a hash of ``seed`` and ``stream``: equal arguments, equal numbers; else independent.

    The global random state is neither read nor changed.

    Arguments:
        seed: The run's seed.
        stream: What the numbers are for, such as ``(rank, "chains")``.
        device: Where the numbers are drawn.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
