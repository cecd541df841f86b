"""Files as a bad disk or a broken transfer leaves them."""

from __future__ import annotations

import random


def cut_or_flipped(content: bytes, rng: random.Random) -> bytes:
    """Return the content cut off somewhere (one time in four), else with one bit changed."""
    damaged = bytearray(content)
    if rng.randrange(4) == 0:
        del damaged[rng.randrange(len(damaged)) :]
    else:
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """Return the content with three of its bytes written over."""
    damaged = bytearray(content)
    for _ in range(3):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)
