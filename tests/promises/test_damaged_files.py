"""Damaged files of every format are read or refused in a sentence, and never crash a reader."""

import os
import time
from pathlib import Path

import pytest

from gptmill.checkpoint import checkpoint
from gptmill.cli.frame import main
from tests.support.fuzz.__main__ import main as run_fuzz
from tests.support.fuzz.readers import READERS
from tests.support.fuzz.running import try_reader
from tests.support.tiny import tiny_gpt, tiny_tokenizer


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    outcomes = try_reader(name, tmp_path / "it", seed=2026, cases=range(24))
    assert outcomes.faults == {}
    assert set(outcomes.counts) <= {"read", "refused"}


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_damaged_files_for_long(tmp_path: Path) -> None:
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "3600"))
    faults: dict[str, str] = {}
    seed = int(time.time())
    while time.monotonic() < end:
        for name in READERS:
            faults |= try_reader(name, tmp_path / f"{name} {seed}", seed, range(50)).faults
        seed += 1
    assert faults == {}


def wrong(*_: object, **__: object) -> None:
    raise AssertionError("planted")


def test_our_own_mistake_surfaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save_causal_lm(tmp_path / "model", tiny_gpt(), tiny_tokenizer())
    monkeypatch.setattr(checkpoint, "read_state", wrong)
    with pytest.raises(AssertionError, match="planted"):
        try_reader("GPT-2 config", tmp_path / "it", seed=1, cases=range(24))
    assert main(["generate", str(tmp_path / "model"), "a"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "AssertionError: planted" in shown


def test_the_runner_prints_counts_and_returns_the_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_fuzz(0.01, 7, ["hparams"]) == 0
    assert "50 files, 0 kinds of faults" in capsys.readouterr().out
