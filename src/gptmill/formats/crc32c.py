"""CRC-32C of large arrays, the checksum in TensorFlow's checkpoints.

The checksum is a remainder of polynomials over GF(2) and therefore linear: many pieces are
processed at the same time, a word of each piece per step. To join two neighbouring pieces, the
remainder of the first is advanced over as many zeros as the second piece has bytes.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

POLYNOMIAL = 0x82F63B78  # Castagnoli's polynomial, bits reversed
MASK = 0xA282EAD8
LANES, WORDS = 16_384, 256  # a block has LANES pieces of WORDS 32-bit words

Words = npt.NDArray[np.uint32]


def masked_crc32c(content: npt.NDArray[np.uint8]) -> int:
    """Return the checksum as TensorFlow and LevelDB store it.

    It is rotated and a constant is added, so that bytes with embedded checksums are no special
    case.
    """
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


def crc32c(content: npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32C of bytes, RFC 3720."""
    state = 0xFFFFFFFF
    block = 4 * LANES * WORDS
    for start in range(0, len(content), block):
        piece = content[start : start + block]
        state = _advance(state, len(piece)) ^ _remainder(piece)
    return state ^ 0xFFFFFFFF


def _remainder(piece: npt.NDArray[np.uint8]) -> int:
    """Return the remainder of a block, starting from state zero.

    Leading zeros leave a state of zero unchanged, so the padding goes in front of the block.
    """
    lanes = LANES
    while lanes > 1 and 4 * lanes > len(piece):
        lanes //= 2
    words = -(-len(piece) // (4 * lanes))
    padded = np.zeros(4 * lanes * words, np.uint8)
    padded[len(padded) - len(piece) :] = piece
    columns = np.ascontiguousarray(padded.view("<u4").reshape(lanes, words).T)  # (words, lanes)
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
    while len(states) > 1:  # join each pair of neighbouring pieces
        states = _apply(_zeros(length), states[::2]) ^ states[1::2]
        length *= 2
    return int(states[0])


@cache
def _tables() -> tuple[Words, Words, Words, Words]:
    """Return four lookup tables for the remainder of a byte.

    Table k is for a byte followed by k more bytes, k from 0 to 3.
    """
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    tables = [table.astype(np.uint32)]
    for _ in range(3):
        tables.append(tables[0][tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return tables[0], tables[1], tables[2], tables[3]


def _advance(state: int, length: int) -> int:
    """Return a state advanced over `length` zero bytes."""
    return int(_apply(_zeros(length), np.array([state], np.uint32))[0])


@cache
def _zeros(length: int) -> Words:
    """Return each bit's state after `length` zero bytes, (32,)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if length == 0:
        return bits
    half = _zeros(length // 2)
    matrix = _apply(half, half)
    if length % 2:
        matrix = _tables()[0][matrix & 0xFF] ^ (matrix >> 8)
    return matrix


def _apply(matrix: Words, states: Words) -> Words:
    """Multiply each state by a bit matrix, (32,)."""
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= np.where((states >> np.uint32(bit)) & 1, matrix[bit], np.uint32(0))
    return out
