"""What a step saw, made again from its number, and where two trainings part."""

from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.token_file import TokenFile
from gptmill.training.loader import digest
from tasks.pretrain import open_windows, pretrain
from tasks.shared.ledger import compare, trained
from tests.support.fakes import FakeRun
from tests.tasks.test_pretrain import PARAMS as USUAL
from tests.tasks.test_sample import body as sample_body
from tests.tasks.test_sample import write_tokens

PARAMS = USUAL.model_copy(update={"steps": 6, "batch_tokens": 48, "sample_every": 0})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_tokens(root, train=20, validation=6)
    sample_body(root).out.rename(root / "artifacts" / "sample")
    return root


def train(project: Path, out: Path, seed: int = 1) -> Path:
    run = FakeRun(project, out)
    run.seed = seed
    pretrain.body(PARAMS, run)
    return run.out


def test_the_ledger_names_what_a_step_read(project: Path, tmp_path: Path) -> None:
    table = pd.read_csv(train(project, tmp_path / "out") / "training.csv", dtype={"batch": str})
    run = FakeRun(project, tmp_path / "reader")
    windows = open_windows(run, "train")
    tokens = TokenFile.open(project / "artifacts/tokenize/train.bin")
    for number, noted in zip(table["batch_number"], table["batch"], strict=True):
        ids, targets = windows.batch(int(number), batch_size=3, seed=run.seed)
        assert digest((ids, targets)) == noted
        rows = PARAMS.describe_batch(run, int(number))
        assert len(rows) == 3
        for row, given in zip(rows, ids.tolist(), strict=True):
            start = row["offset"]
            assert tokens.ids[start : start + len(given)].tolist() == given
            named = [tokens.document_at(place) for place in range(start, start + len(given))]
            assert row["documents"] == list(dict.fromkeys(named))


def test_two_trainings_are_compared_by_what_they_read(project: Path, tmp_path: Path) -> None:
    one, same, other = (train(project, tmp_path / str(k), seed) for k, seed in enumerate((1, 1, 2)))
    assert compare(one, same) == "the same data in all 6 steps"
    table = pd.read_csv(same / "training.csv", dtype={"batch": str})
    table.loc[4:, "batch"] = "0"
    table.to_csv(same / "training.csv", index=False)
    assert compare(one, same).startswith("the same data up to step 4; step 5 saw batch ")
    assert compare(one, other).startswith("the same data up to step 0; step 1 saw batch ")
    with pytest.raises(ValueError, match="name the output folder of a stage that trained"):
        compare(one, tmp_path)


def test_the_stages_that_train_have_a_ledger() -> None:
    assert trained() == ["pretrain", "lora", "classify", "instruct"]
