"""The published figures of GPT-2 124M, where its weights are: reference.md, section 6.

GPTMILL_GPT2 names a folder with them in any form that `gptmill import` reads, the tokenizer's
files included; GPTMILL_VERDICT names The Verdict, where it is not the-verdict.txt in that folder.
"""

import hashlib
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.formats.importing import import_model
from gptmill.model.gpt import GPT
from gptmill.tokenizer.tokenizer import Tokenizer

GIVEN = os.environ.get("GPTMILL_GPT2")
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
TEXTS = {
    ("Every effort moves", 30): (
        " forward, but it's not enough.\n\n"
        "\"I'm not going to sit here and say, 'I'm not going to do this,'\n"
    ),
    ("Every effort moves you", 15): (
        " forward.\n\nThe first step is to understand the importance of your work"
    ),
}
LENGTH = 256  # of the windows over which the loss is a mean

pytestmark = pytest.mark.skipif(
    GIVEN is None, reason="GPT-2's weights are in no package: GPTMILL_GPT2 names no folder"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Tokenizer]:
    assert GIVEN is not None
    out = tmp_path_factory.mktemp("gpt2") / "imported"
    import_model(GIVEN, out)
    return load_causal_lm(out), Tokenizer.from_folder(out)


@pytest.mark.parametrize(("prompt", "new"), list(TEXTS))
def test_greedy_text(gpt2: tuple[GPT, Tokenizer], prompt: str, new: int) -> None:
    model, tokenizer = gpt2
    ids = tokenizer.encode(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    # How the book counts its line ends is not printed: the last one may be cut off.
    assert tokenizer.decode(ids).rstrip() == (prompt + TEXTS[prompt, new]).rstrip()


@pytest.mark.parametrize(("part", "expected"), [("train", 3.7547486888), ("val", 3.5596182346)])
def test_loss_on_the_verdict(gpt2: tuple[GPT, Tokenizer], part: str, expected: float) -> None:
    model, tokenizer = gpt2
    text = verdict()
    cut = int(0.9 * len(text))
    ids = tokenizer.encode(text[:cut] if part == "train" else text[cut:])
    starts = range(0, len(ids) - LENGTH, LENGTH)
    losses = []
    with torch.no_grad():
        for start in starts:
            window = torch.tensor([ids[start : start + LENGTH + 1]])
            logits = model(window[:, :-1])
            losses.append(F.cross_entropy(logits[0], window[0, 1:]).item())
    assert len(losses) * LENGTH == {"train": 4608, "val": 512}[part]
    assert sum(losses) / len(losses) == pytest.approx(expected, abs=1e-4)


def verdict() -> str:
    assert GIVEN is not None
    path = Path(os.environ.get("GPTMILL_VERDICT", Path(GIVEN) / "the-verdict.txt"))
    if not path.is_file():
        pytest.skip(f"the loss is on The Verdict, and {path} is missing: set GPTMILL_VERDICT")
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == VERDICT_SHA256
    return content.decode("utf-8")
