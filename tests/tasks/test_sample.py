from pathlib import Path

import numpy as np
import pytest

from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowConfig, WindowIndex
from gptmill.origins import write_origins
from tasks.frame.run import Metrics
from tasks.sample import Sample, sample
from tests.support.fakes import FakeRun
from tests.support.tiny import TINY_TEXT, tiny_tokenizer

PARTS = ("train", "validation")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_tokens(tmp_path, train=20, validation=6)
    return tmp_path


def write_tokens(root: Path, **copies: int) -> None:
    folder = root / "artifacts" / "tokenize"
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder / "tokenizer", context_length=32)
    write_origins(folder / "origins.json", [])
    ids = np.array(tokenizer.encode(TINY_TEXT), dtype=np.uint32)
    for part, count in copies.items():
        TokenFile.write(
            folder / f"{part}.bin",
            [ids] * count,
            names=[f"{place}.txt" for place in range(count)],
            separator=tokenizer.eot_id,
            vocab_size=tokenizer.n_vocab,
            fingerprint=tokenizer.fingerprint,
        )


def both(project: Path, *, max_length: int = 16, stride: int = 16) -> tuple[FakeRun, Metrics]:
    run = FakeRun(project, project / "artifacts" / f"sample-{max_length}-{stride}")
    return run, sample.body(Sample(windows=WindowConfig(max_length, stride)), run)


def body(project: Path, **windows: int) -> FakeRun:
    return both(project, **windows)[0]


def test_windows_cover_both_parts_and_figures_say_how_many(project):
    run, figures = both(project)
    tokens = {p: TokenFile.open(project / f"artifacts/tokenize/{p}.bin") for p in PARTS}
    index = {part: WindowIndex.load(run.out, part) for part in PARTS}
    for part in PARTS:
        assert index[part].offsets.tolist() == list(range(0, len(tokens[part]) - 16, 16))
    assert figures == {
        "training_windows": len(index["train"]),
        "validation_windows": len(index["validation"]),
        "tokens_per_epoch": len(index["train"]) * 16,
        "overlap": 0.0,
    }
    assert run.said == []


def test_overlap_is_said_and_recorded_and_kept_from_validation(project):
    run, figures = both(project, stride=4)
    assert figures["overlap"] == 0.75
    assert "overlap by 75%: stride 4 is below max_length 16" in run.said[0]
    assert WindowIndex.load(run.out, "validation").config.stride == 16


def test_the_first_batch_is_shown_as_text(project):
    run = body(project)
    shown = run.shown["first batch"]
    tokens = TokenFile.open(project / "artifacts/tokenize/train.bin")
    offset, decoder = int(shown["offset"][0]), tiny_tokenizer()
    assert shown["ids"][0] == repr(decoder.decode(tokens.ids[offset : offset + 16]))
    assert shown["last target"][0] == repr(decoder.decode([tokens.ids[offset + 16]]))
    lines = (run.out / "first_batch.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(shown)


@pytest.mark.parametrize("short", PARTS)
def test_too_little_text_names_the_part_and_writes_nothing(tmp_path, short):
    write_tokens(tmp_path, **{"train": 20, "validation": 20, short: 1})
    with pytest.raises(ValueError, match=f"the {short} part has .* too few for a window"):
        body(tmp_path, max_length=1000, stride=1000)
    assert not list((tmp_path / "artifacts" / "sample-1000-1000").iterdir())
