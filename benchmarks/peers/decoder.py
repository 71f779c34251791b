"""A contestant of benchmarks/generation.py: a model and a decoder.

Reads the number of new ids from each line of standard input and decodes as many ids for each
prompt, greedily and with the model's usual decoder. Answers with a line of JSON: the seconds taken,
a hash of the new ids, and the process's peak memory.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peers import trainer
from torch import Tensor

from gptmill.model.gpt import GPT

Decode = Callable[[int], list[list[int]]]


def prompts_of(task: dict[str, Any]) -> Tensor:
    """Return random ids (B, T), the same for every contestant."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(trainer.VOCABULARY, (task["rows"], task["prompt"]), generator=generator)


def ours(task: dict[str, Any]) -> Decode:
    """Return our own decoder.

    The weights are used as loaded, or laid out for decoding in `precision`.
    """
    from gptmill.generation.decoder import DecodingBatch, DecodingSequence, GenerationConfig
    from gptmill.generation.quantization import quantize

    model = GPT(trainer.shape_of(task), generator=torch.Generator().manual_seed(1)).eval()
    model = model.to(task["device"])
    if task["precision"] != "as loaded":
        model = quantize(model, task["precision"])
    prompts = prompts_of(task).tolist()
    batch = DecodingBatch(model, len(prompts), task["length"], compiled=task["compile"])

    def decode(n_new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=n_new, temperature=0.0, top_k=0, top_p=1.0)
        rows = [DecodingSequence.begin(prompt, config, stop_ids=(), seed=1) for prompt in prompts]
        batch.run(rows)
        return [row.new_ids for row in rows]

    return decode


def transformers(task: dict[str, Any]) -> Decode:
    """Return Hugging Face's generate, with our initial weights."""
    model: Any = trainer.transformers(task).eval().to(task["device"], _dtype(task))
    model.generation_config.eos_token_id = None
    prompts = prompts_of(task).to(task["device"])

    def decode(n_new: int) -> list[list[int]]:
        sequences = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n_new,
            do_sample=False,
            use_cache=task["cached"],
            pad_token_id=0,
        )
        return sequences[:, prompts.size(1) :].tolist()

    return decode


def litgpt(task: dict[str, Any]) -> Decode:
    """Return litgpt's generate, or the batched version for several rows."""
    from litgpt.generate.base import batched_generate_fn, generate

    torch.manual_seed(1)
    model: Any = trainer.litgpt(task).eval().to(task["device"], _dtype(task))
    prompts = prompts_of(task).to(task["device"])
    model.set_kv_cache(batch_size=len(prompts), device=task["device"], dtype=_dtype(task))

    def decode(n_new: int) -> list[list[int]]:
        length = prompts.size(1) + n_new
        if len(prompts) == 1:
            new_ids = generate(model, prompts[0], length, temperature=0.0, include_prompt=False)
            return [new_ids.tolist()]
        steps = list(
            batched_generate_fn(
                model,
                prompts,
                length,
                sample_args={"temperature": 0.0},
                include_prompt=False,
                include_eos=False,
            )
        )
        rows = zip(*steps, strict=True)
        return [[int(new) for part in row if part is not None for new in part] for row in rows]

    return decode


def book(task: dict[str, Any]) -> Decode:
    """Return the book's loop.

    With a cache, use the package's version; without, recompute the whole sequence for each id.
    """
    prompts = prompts_of(task).to(task["device"])
    if task["cached"]:
        from llms_from_scratch.kv_cache.generate import generate_text_simple
        from llms_from_scratch.kv_cache.gpt2 import GPTModel
    else:
        from llms_from_scratch.ch04 import GPTModel, generate_text_simple

    torch.manual_seed(1)
    model = trainer.book(task, GPTModel).eval().to(task["device"], _dtype(task))

    def decode(n_new: int) -> list[list[int]]:
        sequences = generate_text_simple(model, prompts, n_new, task["length"])
        return sequences[:, prompts.size(1) :].tolist()

    return decode


def _dtype(task: dict[str, Any]) -> torch.dtype:
    return torch.bfloat16 if task["precision"] == "bf16" else torch.float32


CONTESTANTS = {"ours": ours, "transformers": transformers, "litgpt": litgpt, "book": book}


def main() -> None:
    """Answer each line of standard input."""
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the libraries' prints out of the answers
    torch.set_float32_matmul_precision("highest")
    decode = CONTESTANTS[task["contestant"]](task)
    for line in sys.stdin:
        started = time.perf_counter()
        rows = decode(int(line))
        seconds = time.perf_counter() - started
        assert [len(row) for row in rows] == [int(line)] * task["rows"], "too few new ids"
        answer = {
            "seconds": seconds,
            "ids": hashlib.sha256(str(rows).encode()).hexdigest()[:12],
            "memory": trainer.peak_memory(task["device"]),
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
