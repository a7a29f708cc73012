"""Keccak-256 with the padding of before FIPS 202, which hashlib does not have and Ethereum uses.

Bertoni, Daemen, Peeters, Van Assche: The Keccak reference, 3.0 (2011), sections 1.2 and 2.
"""

from __future__ import annotations

LANE = 2**64 - 1
RATE = 136


def keccak_256(message: bytes) -> bytes:
    """The hash, 32 bytes."""
    padded = bytearray(message + b"\x01" + bytes(-(len(message) + 1) % RATE))
    padded[-1] |= 0x80
    lanes = [0] * 25  # lane (x, y) at x + 5 y
    for block in range(0, len(padded), RATE):
        for lane in range(RATE // 8):
            lanes[lane] ^= int.from_bytes(padded[block + 8 * lane : block + 8 * lane + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _permute(a: list[int]) -> list[int]:
    register = 1
    for _ in range(24):
        # θ
        columns = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        for x in range(5):
            parity = columns[x - 1] ^ _rotate(columns[(x + 1) % 5], 1)
            for y in range(0, 25, 5):
                a[x + y] ^= parity
        # ρ and π
        x, y, current = 1, 0, a[1]
        for t in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, a[x + 5 * y] = a[x + 5 * y], _rotate(current, (t + 1) * (t + 2) // 2 % 64)
        # χ
        for y in range(0, 25, 5):
            row = a[y : y + 5]
            for x in range(5):
                a[y + x] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5] & LANE)
        # ι
        for j in range(7):
            if register & 1:
                a[0] ^= 1 << ((1 << j) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
    return a


def _rotate(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & LANE
