"""Two language models on common validation documents, in bits per byte.

Bits per byte compare models with different vocabularies: both predict every byte of the same text.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.comparing.section import BITS, LEAST_ROWS, MissingError, Section, measured
from gptmill.comparing.side import Side
from gptmill.comparing.significance import on_resamples
from gptmill.data.token_file import TokenFile
from gptmill.evaluation.language_model import token_sizes
from gptmill.evaluation.paired import Figure, ratio
from gptmill.evaluation.perplexity import sliding_window_nats
from gptmill.files import md5
from gptmill.tokenizer.tokenizer import Tokenizer

BLOCK = 2048
"""Tokens of A in a block."""
MOST_BLOCKS = 40
"""Blocks scored at most; evenly spaced, enough for a minute of a laptop."""
BITS_PER_BYTE = Figure("bits", "bytes", less_is_better=True)


def language_models(first: Side, second: Side, *, device: str) -> Section:
    """Compare the pretrained models on documents that neither was trained on."""
    weights = [side.file("pretrain/model.safetensors").parent for side in (first, second)]
    held_out = [list(documents(side, "validation")) for side in (first, second)]
    trained = {text for side in (first, second) for text in documents(side, "train")}
    both = [text for text in dict.fromkeys(held_out[0]) if text in set(held_out[1])]
    common = [text for text in both if text not in trained and text.strip()]
    blocks, how = units(common, Tokenizer.from_folder(weights[0]))
    note = (
        f"{len(blocks):,} {how} compared: of {len(held_out[0]):,} validation documents in A and "
        f"{len(held_out[1]):,} in B, {len(both):,} are in both, and {len(both) - len(common):,} "
        "of these were left out, since A or B was trained on them"
    )
    if len(blocks) < LEAST_ROWS:
        raise MissingError(f"{note}; a verdict needs at least {LEAST_ROWS}")
    sizes = np.array([len(text.encode()) for text in blocks])
    same = md5(weights[0] / "model.safetensors") == md5(weights[1] / "model.safetensors")
    scored = [_bits(weights[0], blocks, device)]
    scored.append(scored[0] if same else _bits(weights[1], blocks, device))
    rows = [pd.DataFrame({"bits": bits, "bytes": sizes}) for bits in scored]
    values = on_resamples(
        lambda draws: np.array([ratio(table, BITS_PER_BYTE, draws) for table in rows]), len(blocks)
    )
    figure = measured("bits per byte", values, unit=BITS, less_is_better=True)
    notes = (note, *(["A and B have the same weights"] if same else []))
    return Section("pretrain", "Language model", rows=len(blocks), notes=notes, figures=(figure,))


def documents(side: Side, part: str) -> Iterator[str]:
    """Yield the documents of a part of a side's tokenized text."""
    side.file(f"tokenize/{part}.json")
    file = TokenFile.open(side.file(f"tokenize/{part}.bin"))
    tokenizer = Tokenizer.from_folder(side.file("tokenize/tokenizer"))
    for ids in np.split(np.asarray(file.ids), file.starts[1:]):
        end = len(ids) - 1 if len(ids) and ids[-1] == tokenizer.eot_id else len(ids)
        yield tokenizer.decode(ids[:end].tolist())


def units(texts: list[str], tokenizer: Tokenizer) -> tuple[list[str], str]:
    """Return the units of the bootstrap, and a name for the units.

    A unit is a document, cut after 2,048 tokens; below 30 documents, a block of 2,048 tokens.
    """
    sizes = token_sizes(tokenizer)
    if len(texts) >= LEAST_ROWS:
        parts = [next(cut(text, tokenizer, sizes)) for text in texts]
        name = f"documents (cut after {BLOCK:,} tokens)"
    else:
        parts = [part for text in texts for part in cut(text, tokenizer, sizes)]
        name = f"blocks of {BLOCK:,} tokens of {len(texts):,} documents"
    chosen = np.unique(np.linspace(0, len(parts) - 1, MOST_BLOCKS).astype(int))
    return [parts[place] for place in chosen if parts], name


def cut(text: str, tokenizer: Tokenizer, sizes: npt.NDArray[np.int64]) -> Iterator[str]:
    """Yield the blocks of a text; a block ends at a character's end."""
    content = text.encode()
    ends = np.cumsum(sizes[tokenizer.encode(text)])[BLOCK - 1 :: BLOCK]
    start = 0
    for end in (*map(int, ends), len(content)):
        while end < len(content) and content[end] & 0xC0 == 0x80:
            end += 1
        if end > start:
            yield content[start:end].decode()
        start = end


def _bits(folder: Path, texts: list[str], device: str) -> npt.NDArray[np.float64]:
    """Return -log2 p of each text after `<|endoftext|>`."""
    model = load_causal_lm(folder).to(device).eval()
    tokenizer = Tokenizer.from_folder(folder)
    length = model.config.context_length
    nats = [
        sliding_window_nats(
            model, [tokenizer.eot_id, *tokenizer.encode(text)], context_length=length, stride=length
        )
        for text in texts
    ]
    return np.array(nats) / math.log(2)
