"""instruct: load_gpt2, split/instructions -> artifacts/instruct (an assistant)."""

from functools import partial
from typing import Any

import pandas as pd
import torch
from pydantic import Field

from gptmill.checkpoint.adapter import save_adapter
from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    read_config,
    save_causal_lm,
    special_ids,
)
from gptmill.data.batching import RowOrder, by_length
from gptmill.data.parts import PARTS
from gptmill.files import read_json, write_json
from gptmill.finetuning.instructions import (
    answers,
    batch,
    encode_rows,
    read_template,
)
from gptmill.model.lora import LoRAConfig, add_lora, merge, narrow_frozen, restore_frozen
from gptmill.model.objectives import LANGUAGE, mean_language_loss
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.flops import DTYPES, train_flops_per_token
from tasks.frame.run import Inputs, Metrics, Run
from tasks.frame.stage import stage
from tasks.shared.cards import tuned_card
from tasks.shared.training import TrainingSection, train

BASE = "artifacts/load_gpt2"  # as the adapter names it: its place in the project


class Instruct(TrainingSection):
    """params.yaml `instruct:`."""

    adapter: LoRAConfig | None = Field(description="null: train all weights")
    mask_prompt: bool = Field(description="learn answers alone, not the prompts before them")
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0, description="the longest answer on the test part")

    def describe_batch(self, inputs: Inputs, number: int) -> list[dict[str, Any]]:
        """Return the records of instructions/train.json in a training batch."""
        folder = inputs.input("load_gpt2")
        tokenizer, length = Tokenizer.from_folder(folder), read_config(folder).context_length
        records = read_json(inputs.input("split/instructions") / "train.json")
        rows = encode_rows(records, tokenizer, read_template(folder, tokenizer), length)
        order = RowOrder(rows.lengths, self.batch_size, inputs.seed)
        places = [rows.places[row] for row in order.rows(number)]
        return [{"row": place, **records[place]} for place in places]


@stage
def instruct(params: Instruct, run: Run) -> Metrics:
    """Fine-tune the model, or an adapter, on instructions, then answer the test part.

    The model also answers before fine-tuning: the difference is the value of fine-tuning. An
    adapter is saved in the folder `adapter` and merged into the saved weights.
    """
    folder = run.path(BASE)
    device = run.device()
    model = load_causal_lm(folder).to(device.device)
    tokenizer = Tokenizer.from_folder(folder)
    template = read_template(folder, tokenizer)
    split = run.input("split/instructions")
    records = {part: read_json(split / f"{part}.json") for part in PARTS}
    length = model.config.context_length
    rows = {part: encode_rows(records[part], tokenizer, template, length) for part in PARTS}
    for part in ("train", "validation"):
        if not rows[part].ids:
            raise ValueError(
                f"no instruction row of the {part} part fits a context of {length} ids"
            )
    end, masked = template.end_id(tokenizer), params.mask_prompt
    order = RowOrder(rows["train"].lengths, params.batch_size, run.seed)
    steps = params.epochs * order.steps_per_epoch
    mean_length = int(rows["train"].lengths.mean())
    flops = train_flops_per_token(model.config, mean_length)
    validation = [
        batch(rows["validation"], indices, end_id=end, mask_prompt=masked, limit=length)
        for indices in by_length(rows["validation"].lengths, params.batch_size)
    ]
    answer = partial(answers, max_new_tokens=params.max_new_tokens, weights=device.precision)
    before = run.kept(
        [BASE, "artifacts/split/instructions"],
        {"max_new_tokens": params.max_new_tokens},
        lambda: answer(model, records["test"], tokenizer, template),
    )
    if params.adapter is not None:
        add_lora(model, params.adapter, generator=torch.Generator().manual_seed(run.seed))
        if not device.sharded:  # shards of one unit have one dtype
            narrow_frozen(model, DTYPES[device.precision])
    trained = train(
        run,
        model,
        LANGUAGE,
        lambda step: batch(
            rows["train"], order.rows(step), end_id=end, mask_prompt=masked, limit=length
        ),
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
    if not device.sharded:  # the saved model only decodes from here on
        narrow_frozen(model.transformer.requires_grad_(False), DTYPES[device.precision])
    after = answer(model, records["test"], tokenizer, template)
    given = [
        {**record, "before": first, "answer": last}
        for record, first, last in zip(records["test"], before, after, strict=True)
    ]
    write_json(run.out / "answers.json", given)
    run.show("answers on the test part", pd.DataFrame(given).groupby("kind").head(2))
    metrics: Metrics = {
        "train_rows": len(rows["train"].ids),
        "rows_too_long_for_the_context": sum(part.n_dropped for part in rows.values()),
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        "validation_loss": trained.evaluation["val/loss"],
        "test_rows": len(given),
    }
    tuned_card("instruct", run.out, run, split / "train.json", metrics)
    run.log_model("assistant", run.out)
    return metrics
