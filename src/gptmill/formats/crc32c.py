"""CRC-32C of large arrays, by which TensorFlow's checkpoints guard their bytes.

The checksum is a remainder of polynomials over GF(2), so it is linear: many pieces are taken at
once, a word of each a step, and joined by what zeros behind a piece do to its remainder.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
MASK = 0xA282EAD8
LANES, WORDS = 16_384, 256  # a block is this many pieces of this many 32-bit words

Words = npt.NDArray[np.uint32]


def masked_crc32c(content: npt.NDArray[np.uint8]) -> int:
    """Return the checksum of bytes as TensorFlow and LevelDB store it: rotated, and a number added.

    So stored, the checksum of bytes that hold checksums is no special case.
    """
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


def crc32c(content: npt.NDArray[np.uint8]) -> int:
    """Return the checksum of bytes, RFC 3720."""
    state = 0xFFFFFFFF
    block = 4 * LANES * WORDS
    for start in range(0, len(content), block):
        piece = content[start : start + block]
        state = _advance(state, len(piece)) ^ _remainder(piece)
    return state ^ 0xFFFFFFFF


def _remainder(piece: npt.NDArray[np.uint8]) -> int:
    """Return the remainder of a block from a state of zero, which zeros in front leave as it is."""
    lanes = LANES
    while lanes > 1 and 4 * lanes > len(piece):
        lanes //= 2
    words = -(-len(piece) // (4 * lanes))
    padded = np.zeros(4 * lanes * words, np.uint8)
    padded[len(padded) - len(piece) :] = piece
    columns = np.ascontiguousarray(padded.view("<u4").reshape(lanes, words).T)  # a word a lane each
    states = np.zeros(lanes, np.uint32)
    first, second, third, fourth = _tables()
    for column in columns:
        states ^= column
        states = (
            fourth[states & 0xFF]
            ^ third[(states >> 8) & 0xFF]
            ^ second[(states >> 16) & 0xFF]
            ^ first[states >> 24]
        )
    length = 4 * words
    while len(states) > 1:  # each pair of neighbours becomes one
        states = _applied(_zeros(length), states[::2]) ^ states[1::2]
        length *= 2
    return int(states[0])


@cache
def _tables() -> tuple[Words, Words, Words, Words]:
    """Return what a byte becomes when none, one, two or three more bytes follow it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    tables = [table.astype(np.uint32)]
    for _ in range(3):
        tables.append(tables[0][tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return tables[0], tables[1], tables[2], tables[3]


def _advance(state: int, length: int) -> int:
    """Return a state after `length` bytes of zero."""
    return int(_applied(_zeros(length), np.array([state], np.uint32))[0])


@cache
def _zeros(length: int) -> Words:
    """Return what `length` bytes of zero make of each bit of a state, (32,)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if length == 0:
        return bits
    half = _zeros(length // 2)
    both = _applied(half, half)
    if length % 2:
        both = _tables()[0][both & 0xFF] ^ (both >> 8)
    return both


def _applied(matrix: Words, states: Words) -> Words:
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= np.where((states >> np.uint32(bit)) & 1, matrix[bit], np.uint32(0))
    return out
