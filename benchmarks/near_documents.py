"""Near-duplicate documents: recall and precision on planted pairs, and the cost of 100 MB.

Pairs of planted similarity lie among unrelated texts. Words are drawn as in a language: a few are
frequent, most are rare. Each cost is measured in its own process, on texts read from a file.
"""

import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

from gptmill.data.near_documents import THRESHOLD, near_documents
from gptmill.data.near_duplicates import jaccard, shingles

LEVELS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
LENGTHS = (30, 300, 3000)  # words
WIDTH = 0.02  # of a level
PIECE = 2**18  # bytes
DOCUMENT_BYTES = (500, 5_000, 50_000, 5_000_000)
COPIES = 0.1
"""The share of documents that are near copies of the document before."""
VOCABULARY = [f"{random.Random(n).getrandbits(30):x}" for n in range(50_000)]
WEIGHTS = list(accumulate(1 / (n + 2.7) for n in range(len(VOCABULARY))))  # Zipf-Mandelbrot


def drawn(length: int, rng: random.Random) -> list[str]:
    """Return words drawn by frequency."""
    return rng.choices(VOCABULARY, cum_weights=WEIGHTS, k=length)


def copy(text: list[str], share: float, rng: random.Random) -> list[str]:
    """Return a text in which this share of the words is drawn again, at random places."""
    other = list(text)
    for place, word in zip(
        rng.sample(range(len(text)), round(share * len(text))), drawn(len(text), rng), strict=False
    ):
        other[place] = word
    return other


def planted(level: float, length: int, rng: random.Random) -> tuple[str, str]:
    """Return a text and a copy with a similarity of `level` to `level` + WIDTH."""
    while True:
        text = drawn(length, rng)
        low, high = 0.0, 1.0
        for _ in range(12):
            share = (low + high) / 2
            other = copy(text, share, rng)
            similarity = jaccard(shingles(text), shingles(other))
            if level <= similarity < level + WIDTH:
                return " ".join(text), " ".join(other)
            low, high = (share, high) if similarity >= level else (low, share)


def recall(pairs: int) -> None:
    """Print the share of planted pairs found, and of found pairs at the threshold or above."""
    print(f"{pairs} pairs a row; threshold {THRESHOLD}")
    print("words   similarity   recall   precision")
    for length in LENGTHS:
        rng = random.Random(length)
        texts = [t for level in LEVELS for _ in range(pairs) for t in planted(level, length, rng)]
        texts += [" ".join(drawn(length, rng)) for _ in range(pairs * len(LEVELS))]
        found = near_documents([partial(list, [text]) for text in texts])
        for number, level in enumerate(LEVELS):
            mine = [p for p in found if p.first // 2 // pairs == number]
            right = sum(p.second == p.first + 1 and level >= THRESHOLD for p in mine)
            precision = f"{right / len(mine):9.1%}" if mine else "        -"
            print(f"{length:5,}   {level:10}   {right / pairs:6.1%}   {precision}", flush=True)


def write(path: Path, size: int, total: int) -> list[tuple[int, int]]:
    """Write texts of about `size` bytes; return the place of each."""
    rng = random.Random(size)
    places, text = [], drawn(size // 8, rng)
    with path.open("wb") as file:
        while file.tell() < total:
            is_copy = rng.random() < COPIES
            text = copy(text, 0.05, rng) if is_copy else drawn(size // 8, rng)
            content = " ".join(text).encode()
            places.append((file.tell(), len(content)))
            file.write(content)
    return places


def cost(path: Path, places: list[tuple[int, int]]) -> tuple[float, float, int]:
    """Return CPU seconds, the growth of the peak memory in MB, and the number of pairs."""
    near_documents([partial(list, ["a text"]), partial(list, ["another text"])])
    with path.open("rb") as file:

        def pieces(start: int, size: int) -> Iterator[str]:
            for place in range(start, start + size, PIECE):
                file.seek(place)
                yield file.read(min(PIECE, start + size - place)).decode()

        before, begin = peak(), time.process_time()
        found = near_documents([partial(pieces, *place) for place in places])
        return time.process_time() - begin, peak() - before, len(found)


def peak() -> float:
    """Return the peak memory of this process in MB, on Linux.

    `getrusage` would count the parent's memory before this program was loaded.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def costs(megabytes: int) -> None:
    """Print the cost for documents of several sizes."""
    print(f"{megabytes} MB of text a row, {COPIES:.0%} of the documents near copies")
    print("bytes per document   documents   pairs   CPU seconds   peak memory, MB more")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts"
        for size in DOCUMENT_BYTES:
            places = write(path, size, megabytes * 10**6)
            with context.Pool(1) as pool:
                seconds, memory, pairs = pool.apply(cost, (path, places))
            print(
                f"{size:18,}   {len(places):9,}   {pairs:5,}   {seconds:11.1f}   {memory:20.0f}",
                flush=True,
            )


if __name__ == "__main__":
    recall(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    costs(int(sys.argv[2]) if len(sys.argv) > 2 else 100)
