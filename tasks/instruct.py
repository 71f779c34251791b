"""instruct: load_gpt2, split/instructions -> artifacts/instruct (an assistant)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, Field

from gptmill.checkpoint.adapter import save_adapter
from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    read_config,
    save_causal_lm,
    special_ids,
)
from gptmill.data.batching import RowOrder, by_length
from gptmill.data.parts import PARTS
from gptmill.evaluation.overlap import normalise, repetition
from gptmill.files import read_json, write_json
from gptmill.finetuning.instruction_rows import (
    TOO_LONG,
    InstructionRows,
    Masked,
    Record,
    batch,
    encode_rows,
    without_shared,
)
from gptmill.finetuning.instructions import Reply, answers
from gptmill.finetuning.marking import bracketed, marked
from gptmill.finetuning.templates import check_template, choose_template
from gptmill.model.lora import LoRAConfig, add_lora, merge, narrow_frozen, restore_frozen
from gptmill.model.objectives import LANGUAGE, mean_language_loss
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.flops import DTYPES, train_flops_per_token
from tasks.frame.run import Inputs, Metrics, Run
from tasks.frame.stage import stage
from tasks.shared.cards import tuned_card
from tasks.shared.training import TrainingSection, train

BASE = "artifacts/load_gpt2"  # as the adapter names it: its place in the project


SHOWN = 3  # rows on the page of tokens
NAMED = 10  # rows named for each reason


@dataclass(frozen=True)
class Encoded:
    """The records and rows of each part, with tokenizer and template."""

    tokenizer: Tokenizer
    template: Template
    records: Mapping[str, list[Record]]
    rows: Mapping[str, InstructionRows]
    context_length: int


class Instruct(TrainingSection):
    """params.yaml `instruct:`."""

    quality: ClassVar[tuple[str, ...]] = (
        "validation_loss",
        "test_stopped",
        "test_length_ratio",
        "test_repetition",
    )
    adapter: LoRAConfig | None = Field(description="null: train all weights")
    mask_prompt: Masked = Field(
        description="true: learn every answer, not the prompts; last: the last answer; false: all"
    )
    template: Annotated[str, AfterValidator(check_template)] = Field(
        description="the base's, or alpaca, chatml, phi-3, or Jinja text"
    )
    unfit: float = Field(ge=0, le=1, description="the largest share of unfit rows in a part")
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0, description="the longest answer on the test part")

    def encoded(self, inputs: Inputs) -> Encoded:
        """Encode the rows of all parts; training rows share no prompt with the other parts."""
        folder, split = inputs.path(BASE), inputs.input("split/instructions")
        tokenizer, length = Tokenizer.from_folder(folder), read_config(folder).context_length
        template = choose_template(self.template, folder, tokenizer)
        records = {part: read_json(split / f"{part}.json") for part in PARTS}
        train, *held_out = (
            encode_rows(records[part], tokenizer, template, length, masked=self.mask_prompt)
            for part in PARTS
        )
        rows = [without_shared(train, held_out), *held_out]
        return Encoded(tokenizer, template, records, dict(zip(PARTS, rows, strict=True)), length)

    def describe_batch(self, inputs: Inputs, number: int) -> list[dict[str, Any]]:
        """Return the records of instructions/train.json in a training batch."""
        encoded = self.encoded(inputs)
        rows = encoded.rows["train"]
        order = RowOrder(rows.lengths, self.batch_size, inputs.seed)
        places = [rows.places[row] for row in order.rows(number)]
        return [{"row": place, **encoded.records["train"][place]} for place in places]

    def marked(
        self, inputs: Inputs, part: str, row: int | None, most: int
    ) -> list[tuple[int, list[tuple[str, bool]]]]:
        """Return the tokens of a row of a part, or of the first rows, with the counted marked.

        Rows are numbered from 1. Raises ValueError for a row that the part lacks.
        """
        folder = inputs.path(BASE)
        records = read_json(inputs.input("split/instructions") / f"{part}.json")
        if row is not None and not 1 <= row <= len(records):
            raise ValueError(f"row {row}: the {part} part has the rows 1 to {len(records):,}")
        tokenizer = Tokenizer.from_folder(folder)
        template = choose_template(self.template, folder, tokenizer)
        numbers = range(1, min(most, len(records)) + 1) if row is None else [row]
        mark = partial(marked, tokenizer=tokenizer, template=template, masked=self.mask_prompt)
        return [(number, mark(records[number - 1])) for number in numbers]


def unfit_rows(encoded: Encoded, share: float) -> list[dict[str, object]]:
    """Return a table of the rows unfit for training, by file and reason.

    Raises ValueError, naming the rows, where more than a share of a part is unfit.
    """
    table: list[dict[str, object]] = []
    for part, rows in encoded.rows.items():
        file, total = f"artifacts/split/instructions/{part}.json", len(encoded.records[part])
        reasons = {reason: _named(places) for reason, places in rows.unfit.items()}
        if rows.n_dropped > share * total:
            first = min(place for places in rows.unfit.values() for place in places) + 1
            listed = "; ".join(f"{reason}: {rows}" for reason, rows in reasons.items())
            raise ValueError(
                f"{file}: {rows.n_dropped:,} of {total:,} rows cannot be trained on; allowed is a "
                f"share of {share:g} (instruct.unfit). {listed} (the context has "
                f"{encoded.context_length} ids). `make show STAGE=instruct PART={part} ROW={first}`"
                " shows a row; correct or remove the rows, or allow a larger share in params.yaml"
            )
        table += [
            {"file": file, "reason": reason, "count": len(rows.unfit[reason]), "rows": named}
            for reason, named in reasons.items()
        ]
    return table


def _tokens_page(params: Instruct, run: Inputs) -> str:
    """Return the first training rows as markdown, with counted tokens in double brackets."""
    rows = params.marked(run, "train", None, SHOWN)
    blocks = [f"```text\n{bracketed(tokens)}\n```" for _, tokens in rows]
    return "\n\n".join(["The tokens in double brackets count in the loss.", *blocks])


def _first_of_kinds(answers: Sequence[dict[str, Any]], count: int = 2) -> list[dict[str, Any]]:
    """Return the first answers of each kind, in their order."""
    seen: Counter[str] = Counter()
    first = []
    for answer in answers:
        seen[answer["kind"]] += 1
        if seen[answer["kind"]] <= count:
            first.append(answer)
    return first


def _named(places: list[int]) -> str:
    """Return the numbers of the first rows, counted from 1, and the number of the others."""
    more = f" and {len(places) - NAMED:,} more" if len(places) > NAMED else ""
    return f"rows {', '.join(str(place + 1) for place in places[:NAMED])}{more}"


def held_out(replies: Sequence[Reply], expected: Sequence[str]) -> Metrics:
    """Return stop rate, relative length and repetition of answers."""
    words = [normalise(reply.text) for reply in replies]
    n_expected = sum(len(normalise(text)) for text in expected)
    return {
        "test_stopped": sum(reply.stopped for reply in replies) / len(replies),
        "test_length_ratio": sum(map(len, words)) / max(1, n_expected),
        "test_repetition": sum(map(repetition, words)) / len(words),
    }


def _show_rows(params: Instruct, run: Run, encoded: Encoded) -> None:
    """Show the rows left out and the first rows as tokens; raise ValueError where none is left."""
    left_out = unfit_rows(encoded, params.unfit)
    if left_out:
        run.show("rows left out", left_out)
    run.show("rows as tokens", _tokens_page(params, run))
    for part in ("train", "validation"):
        if not encoded.rows[part].ids:
            raise ValueError(
                f"no instruction row of the {part} part fits a context of "
                f"{encoded.context_length} ids"
            )


def _side_by_side(
    records: Sequence[Record], before: Sequence[Reply], after: Sequence[Reply]
) -> list[dict[str, Any]]:
    """Return each record with the replies before and after fine-tuning."""
    return [
        {
            **record,
            "before": first.text,
            "before_stopped": first.stopped,
            "answer": last.text,
            "stopped": last.stopped,
        }
        for record, first, last in zip(records, before, after, strict=True)
    ]


@stage
def instruct(params: Instruct, run: Run) -> Metrics:
    """Fine-tune the model, or an adapter, on instructions, then answer the test part.

    The model also answers before fine-tuning: the difference is the value of fine-tuning. An
    adapter is saved in the folder `adapter` and merged into the saved weights.
    """
    folder = run.path(BASE)
    device = run.device()
    encoded = params.encoded(run)
    tokenizer, template = encoded.tokenizer, encoded.template
    records, rows, length = encoded.records, encoded.rows, encoded.context_length
    end = template.end_id(tokenizer)
    _show_rows(params, run, encoded)
    model = load_causal_lm(folder).to(device.device)
    order = RowOrder(rows["train"].lengths, params.batch_size, run.seed)
    steps = params.epochs * order.steps_per_epoch
    mean_length = int(rows["train"].lengths.mean())
    flops = train_flops_per_token(model.config, mean_length)
    validation = [
        batch(rows["validation"], indices, end_id=end, limit=length)
        for indices in by_length(rows["validation"].lengths, params.batch_size)
    ]
    answer = partial(answers, max_new_tokens=params.max_new_tokens, weights=device.precision)
    kept = run.kept(
        [BASE, "artifacts/split/instructions"],
        {"max_new_tokens": params.max_new_tokens, "template": params.template},
        lambda: answer(model, records["test"], tokenizer, template),
    )
    before = [Reply(*reply) for reply in kept]
    if params.adapter is not None:
        add_lora(model, params.adapter, generator=torch.Generator().manual_seed(run.seed))
        if not device.sharded:  # shards of one unit have one dtype
            narrow_frozen(model, DTYPES[device.precision])
    trained = train(
        run,
        model,
        LANGUAGE,
        lambda step: batch(rows["train"], order.rows(step), end_id=end, limit=length),
        plan=params.plan(run, steps=steps, evaluate_every=order.steps_per_epoch),
        evaluate=lambda: {"val/loss": mean_language_loss(model, validation, device)},
        describe=partial(params.describe_batch, run),
        flops_per_token=flops,
    )

    if params.adapter is not None:
        save_adapter(run.out / "adapter", model, params.adapter, base=BASE)
        restore_frozen(model, lambda: load_causal_lm(folder).to(device.device))
        merge(model)
    ids = special_ids(tokenizer, sorted(template.stops))
    save_causal_lm(run.out, model, tokenizer, chat_template=template.source, ids=ids)
    consumed = not device.sharded  # shards of one unit live and go together
    after = answer(model, records["test"], tokenizer, template, consumed=consumed)
    given = _side_by_side(records["test"], before, after)
    write_json(run.out / "answers.json", given)
    run.show("answers on the test part", _first_of_kinds(given))
    metrics: Metrics = {
        "train_rows": len(rows["train"].ids),
        "rows_too_long_for_the_context": sum(
            len(part.unfit.get(TOO_LONG, ())) for part in rows.values()
        ),
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        "validation_loss": trained.evaluation["val/loss"],
        "test_rows": len(given),
        **held_out(after, [record["output"] for record in records["test"]]),
    }
    train_file = run.input("split/instructions") / "train.json"
    tuned_card("instruct", run.out, run, train_file, metrics)
    run.log_model("assistant", run.out)
    return metrics
