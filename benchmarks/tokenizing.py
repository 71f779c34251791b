"""Tokenizing of growing text: CPU seconds and peak memory, beside tiktoken's own batch call.

`PYTHONPATH=src:. python benchmarks/tokenizing.py [MB ...]`, with data/ in place. The documents of
data/text are repeated up to each size: as one file each, and all in a single file. Every row is
measured in a new process.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

DATA = Path("data")
SIZES = (10, 100)
KINDS = ("ours", "ours, one file", "tiktoken")


def write_text(folder: Path, size: int, *, single: bool) -> None:
    """Write `size` bytes of documents below `folder`."""
    texts = [path.read_bytes() for path in sorted((DATA / "text").rglob("*.txt"))]
    written, numbers = 0, count()
    for text in cycle(texts):
        if written >= size:
            return
        document = text + f"\n{next(numbers)}\n".encode()
        name = "all.txt" if single else f"{written:012}.txt"
        with (folder / name).open("ab") as file:
            file.write(document)
        written += len(document)


def tokenized(folder: Path, kind: str) -> dict[str, float]:
    """Tokenize the documents; return tokens, seconds and megabytes."""
    import numpy as np

    from gptmill.data.documents import read_documents
    from gptmill.data.token_file import TokenFile
    from gptmill.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_bpe_files(DATA / "bpe/vocab.bpe", DATA / "bpe/encoder.json")
    started, cpu = time.perf_counter(), time.process_time()
    if kind == "tiktoken":
        encoding = tokenizer._engine.encoding  # type: ignore[attr-defined]
        texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
        batch = encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count())
        tokens = sum(map(len, batch))
        np.concatenate([np.array(ids, dtype=np.uint16) for ids in batch]).tofile(folder / "ids")
    else:
        documents = read_documents(folder)
        file = TokenFile.write_parts(
            folder / "ids.bin",
            tokenizer.encode_documents(document.pieces() for document in documents),
            names=[document.name for document in documents],
            separator=tokenizer.eot_id,
            vocab_size=tokenizer.n_vocab,
            fingerprint=tokenizer.fingerprint,
        )
        tokens = len(file) - len(documents) + 1
    return {
        "tokens": tokens,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def rows(size: int) -> Iterator[str]:
    """Yield a line of the table for each kind."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder), size * 10**6, single=kind.endswith("one file"))
            words = [sys.executable, __file__, "--one", folder, kind]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        yield (
            f"| {size:,} MB | {kind} | {found['tokens']:,} | {found['cpu']:.1f} s | "
            f"{found['wall']:.1f} s | {found['peak']:,.0f} MB |"
        )


def main(words: list[str]) -> None:
    """Print the table, or measure one row in this process."""
    if words[:1] == ["--one"]:
        print(json.dumps(tokenized(Path(words[1]), words[2])))
        return
    print("| text | who | tokens | CPU | wall | peak memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for size in map(int, words or SIZES):
        for line in rows(size):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
