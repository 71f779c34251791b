"""Content kept between runs under the hashes of everything that determines it."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptmill.device import Device, RuntimeConfig
from tasks.frame import resume, states
from tasks.frame.run import Run

ENTRY = {"deps": [{"path": "artifacts/a", "md5": "1"}, {"path": "artifacts/b", "md5": "2"}]}


def test_content_is_made_again_where_an_input_or_the_code_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "STATES", tmp_path)
    device = Device("cpu", "", "fp32", compile=False, threads=1, torch="")
    monkeypatch.setattr(Run, "device", lambda self: device)
    made = iter(range(100))
    training = resume.Training("evaluate", ENTRY, {"src": {"a.py": "3"}})

    def kept(training: resume.Training, most: int = 1) -> int:
        run = Run(None, training, runtime=RuntimeConfig("cpu", "fp32", False, 1, False))
        return int(run.kept(["artifacts/a"], {"most": most}, lambda: next(made)))

    assert [kept(training), kept(training), kept(training, most=2)] == [0, 0, 1]
    other = [{"path": "artifacts/a", "md5": "9"}]
    assert kept(replace(training, entry={"deps": other})) == 2
    assert kept(replace(training, code={"src": {"a.py": "4"}})) == 3
    unrelated = [ENTRY["deps"][0], {"path": "artifacts/b", "md5": "8"}]
    assert kept(replace(training, entry={"deps": unrelated})) == 0
    for path in (tmp_path / "kept").iterdir():
        path.write_text("[", encoding="utf-8")
    assert [kept(training), kept(training)] == [4, 4]
