"""Random generators derived from (seed, iteration, stage), never from what was sampled before."""

import hashlib

import torch


def generator(seed: int, iteration: int, stage: str) -> torch.Generator:
    """Return a CPU generator derived from (seed, iteration, stage), so that resumed or reordered runs sample the same.

    >>> rng = generator(seed=1, iteration=0, stage="cameras")
    >>> torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=generator(1, 0, "cameras")))
    True

    Args:
        seed: any integer, the user's seed.
        iteration: SIR iteration k; -1 for the initialisation.
        stage: name of the stage that samples, e.g. ``"cameras"``.
    """
    digest = hashlib.blake2b(f"{seed}/{iteration}/{stage}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
