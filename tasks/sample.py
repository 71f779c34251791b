"""sample: artifacts/tokenize -> artifacts/sample (the starts of all training windows)."""

import pandas as pd

from gptmill.data.tables import markdown_table
from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowConfig, WindowIndex
from gptmill.files import write_text
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage

SHOWN = 4  # windows of the first batch that are shown as text


class Sample(Section):
    """Section `sample` of params.yaml; `max_length` is the context length of the model."""

    windows: WindowConfig


@stage
def sample(params: Sample, run: Run) -> Metrics:
    """Cut the token files into windows of `max_length` ids, `stride` apart.

    Validation windows never overlap, whatever the stride, so that the loss counts each token once.
    """
    config = params.windows
    apart = WindowConfig(max_length=config.max_length, stride=config.max_length)
    folder = run.input("tokenize")
    files = {part: TokenFile.open(folder / f"{part}.bin") for part in ("train", "validation")}
    train = WindowIndex.build(files["train"], config, part="train")
    validation = WindowIndex.build(files["validation"], apart, part="validation")
    train.save(run.out, "train")
    validation.save(run.out, "validation")
    if config.overlap:
        run.log(
            f"windows overlap by {config.overlap:.0%}: stride {config.stride} is below max_length "
            f"{config.max_length}, so ids are read more than once an epoch and memorised sooner"
        )
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    first = first_batch(train, files["train"], tokenizer, seed=run.seed)
    write_text(run.out / "first_batch.md", markdown_table(first) + "\n")
    run.show("first batch", first)
    return {
        "training_windows": len(train),
        "validation_windows": len(validation),
        "tokens_per_epoch": len(train) * config.max_length,
        "overlap": config.overlap,
    }


def first_batch(
    index: WindowIndex, tokens: TokenFile, tokenizer: Tokenizer, *, seed: int
) -> pd.DataFrame:
    """Return the first windows in training order as text, each with its last target."""
    rows = index.rows_at(0, batch_size=SHOWN, seed=seed)
    ids, targets = index.batch(tokens, rows)
    return pd.DataFrame(
        {
            "document": [tokens.document_at(int(index.offsets[row])) for row in rows],
            "offset": index.offsets[rows],
            "ids": [repr(tokenizer.decode(row.tolist())) for row in ids],
            "last target": [repr(tokenizer.decode([int(row[-1])])) for row in targets],
        }
    )
