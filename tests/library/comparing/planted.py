"""Artifacts of a side with a given number of wrong answers."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from gptmill.comparing.side import Side
from gptmill.files import md5, write_csv, write_json
from gptmill.records import content_hash, files_below

OUTPUTS = ("classify", "split/labelled", "split/instructions", "instruct", "evaluate")
ROWS = 1000
EVIL = "<script>alert(1)</script>"


def write_side(folder: Path, *, wrong: int = 30, rows: Sequence[int] = range(ROWS)) -> Side:
    """Write a side whose answers are wrong in the first rows of every task."""
    text = [f"{EVIL if k < 2 else 'text'} {k}" for k in rows]
    label = ["spam" if k % 5 == 0 else "ham" for k in rows]
    p = [0.9 if (lab == "spam") != (k < wrong) else 0.1 for k, lab in zip(rows, label, strict=True)]
    probabilities = {"p_ham": 1 - np.array(p), "p_spam": p}
    predicted = ["spam" if x > 0.5 else "ham" for x in p]
    table = pd.DataFrame({"text": text, "label": label, "predicted": predicted, **probabilities})
    for name in ("classify", "split/labelled", "split/instructions", "instruct", "evaluate"):
        (folder / name).mkdir(parents=True)
    write_csv(folder / "classify/predictions.csv", table)
    steps = pd.DataFrame({"step": [1, 2], "train_loss": [2.0, 1.0]})
    write_csv(folder / "classify/training.csv", steps)
    evaluations = pd.DataFrame({"step": [2], "val_loss": [1.5]})
    write_csv(folder / "classify/evaluations.csv", evaluations)
    for part in ("train", "validation"):
        write_csv(folder / f"split/labelled/{part}.csv", trained_rows(part))
        write_json(folder / f"split/instructions/{part}.json", [exercise(f"{part} 1", "noun")])
    answers = [
        {
            **exercise(str(k), "noun"),
            "before": "",
            "answer": "verb" if k < wrong else "a noun",
            "stopped": k >= wrong,
        }
        for k in range(200)
    ]
    write_json(folder / "instruct/answers.json", answers)
    general = pd.DataFrame(
        {
            "id": [str(k) for k in range(200)],
            "kind": "word",
            "question": [f"Say {k}" for k in range(200)],
            "reference": "cat",
            "base": "",
            "assistant": ["dog" if k < wrong else "cat" for k in range(200)],
            "base_passed": "0",
            "assistant_nats": [2.0 if k < wrong else 1.0 + k % 3 / 10 for k in range(200)],
            "assistant_passed": ["" if k > 190 else str(int(k >= wrong)) for k in range(200)],
        }
    )
    write_csv(folder / "evaluate/general_answers.csv", general)
    return Side("A", folder.name, folder)


def trained_rows(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"label": "ham", "text": list(texts)})


def exercise(word: str, output: str) -> dict[str, str]:
    asked = {"instruction": "Name the word class.", "input": word}
    return {**asked, "output": output, "key": output, "kind": "word class"}


def record(root: Path) -> None:
    """Write dvc.lock, and put the outputs into DVC's cache."""
    hashes = {f"artifacts/{name}": content_hash(root / "artifacts" / name) for name in OUTPUTS}
    outs = [{"path": path, "md5": digest} for path, digest in hashes.items()]
    stage = {"outs": outs, "params": {"params.yaml": {"classify": {"epochs": 3}}}}
    YAML().dump({"schema": "2.0", "stages": {"classify": stage}}, root / "dvc.lock")
    for path, digest in hashes.items():
        listing = []
        for file in files_below(root / path):
            listing.append({"md5": md5(file), "relpath": file.relative_to(root / path).as_posix()})
            shutil.copy(file, place(root, md5(file)))
        text = json.dumps(listing, sort_keys=True)
        place(root, digest).write_text(text)


def place(root: Path, digest: str) -> Path:
    """Return the path of a cached file, in a folder that exists."""
    path = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
