"""Notes beside a training's states: a damaged note is reported and counts as none."""

from pathlib import Path

import pytest

from gptmill.device import RuntimeConfig
from gptmill.training.state.store import SavedProgress
from tasks.frame import resume, states

ENTRY = {"cmd": "c", "deps": [], "params": {"params.yaml": {"seed": 1}}, "outs": ["artifacts/x"]}
RUNTIME = RuntimeConfig(
    device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
)
GARBAGE = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"null",
    b"[1, 2]",
    b"7",
    b"{}",
    b'{"entry": 3}',
    b'{"worker": 3}',
]


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> resume.Training:
    monkeypatch.setattr(states, "STATES", tmp_path)
    monkeypatch.setattr(resume, "progress", lambda folder: object())
    made = resume.Training("x", ENTRY)
    made.folder.mkdir(parents=True)
    made.note("run-1")
    return made


@pytest.mark.parametrize("content", [*GARBAGE, b'{"entry": {"outs": []}, "run": "r"}'])
def test_a_damaged_note_names_no_change_and_stops_nothing(
    training: resume.Training, content: bytes
) -> None:
    assert training.run == "run-1"
    (note,) = training.folder.glob(resume.NOTE)
    note.write_bytes(content)
    assert training.run in (None, "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "ROOT", states.STATES)
        patch.setattr(states, "progress", lambda folder: SavedProgress(3, 60.0))
        assert training.origin().endswith("step 3, after 1m00s of training, by this worker")
    differences = resume.differences(resume.read_note(note), training)
    assert differences == ["unknown, since training.json beside the state is missing or damaged"]
