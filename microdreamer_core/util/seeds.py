"""Random numbers that depend on what is drawn, never on what was drawn before."""

import hashlib

import torch


def generator(seed: int, iteration: int, stage: str) -> torch.Generator:
    """A CPU generator derived from (seed, iteration, stage), so that a resumed, exploded or reordered run draws the same.

    Args:
        seed: any integer, the user's seed.
        iteration: SIR iteration k; -1 for the initialisation.
        stage: name of the stage that draws, e.g. ``"cameras"``.
    """
    digest = hashlib.blake2b(f"{seed}/{iteration}/{stage}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
