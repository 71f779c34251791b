"""One contestant of benchmarks/generation.py: a model, its usual decoder, new ids on demand.

Reads a number of new ids a line from its input and answers with a line of JSON: the seconds that
as many greedy ids for each prompt took, a hash of them, and the process's peak memory.
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
    """Our own decoder: the weights as they are, or laid out for decoding in `precision`."""
    from gptmill.generation.decoder import Batch, GenerationConfig, Row
    from gptmill.generation.quantization import quantize

    model = GPT(trainer.shape_of(task), generator=torch.Generator().manual_seed(1)).eval()
    model = model.to(task["device"])
    if task["precision"] != "as loaded":
        model = quantize(model, task["precision"])
    prompts = prompts_of(task).tolist()
    batch = Batch(model, len(prompts), task["length"], compiled=task["compile"])

    def decode(n_new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=n_new, temperature=0.0, top_k=0, top_p=1.0)
        rows = [Row.begin(prompt, config, stop_ids=(), seed=1) for prompt in prompts]
        batch.run(rows)
        return [row.new_ids for row in rows]

    return decode


def transformers(task: dict[str, Any]) -> Decode:
    """Hugging Face's generate on the weights that ours starts from."""
    model: Any = trainer.transformers(task).eval().to(_dtype(task))
    model.generation_config.eos_token_id = None
    prompts = prompts_of(task)

    def decode(n_new: int) -> list[list[int]]:
        found = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n_new,
            do_sample=False,
            use_cache=task["cached"],
            pad_token_id=0,
        )
        return found[:, prompts.size(1) :].tolist()

    return decode


def litgpt(task: dict[str, Any]) -> Decode:
    """Return litgpt's generate, for many rows its batched one."""
    from litgpt.generate.base import batched_generate_fn, generate

    torch.manual_seed(1)
    model: Any = trainer.litgpt(task).eval().to(_dtype(task))
    prompts = prompts_of(task)
    model.set_kv_cache(batch_size=len(prompts), dtype=_dtype(task))

    def decode(n_new: int) -> list[list[int]]:
        length = prompts.size(1) + n_new
        if len(prompts) == 1:
            found = generate(model, prompts[0], length, temperature=0.0, include_prompt=False)
            return [found.tolist()]
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
    """Return the book's loop, which reads everything again, or its package's with a cache."""
    prompts = prompts_of(task)
    if task["cached"]:
        from llms_from_scratch.kv_cache.generate import generate_text_simple
        from llms_from_scratch.kv_cache.gpt2 import GPTModel
    else:
        from llms_from_scratch.ch04 import GPTModel, generate_text_simple

    torch.manual_seed(1)
    model = trainer.book(task, GPTModel).eval().to(_dtype(task))

    def decode(n_new: int) -> list[list[int]]:
        found = generate_text_simple(model, prompts, n_new, task["length"])
        return found[:, prompts.size(1) :].tolist()

    return decode


def _dtype(task: dict[str, Any]) -> torch.dtype:
    return torch.bfloat16 if task["precision"] == "bf16" else torch.float32


CONTESTANTS = {"ours": ours, "transformers": transformers, "litgpt": litgpt, "book": book}


def main() -> None:
    """Answer each line of input until there is none."""
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_float32_matmul_precision("highest")
    decode = CONTESTANTS[task["contestant"]](task)
    for line in sys.stdin:
        started = time.perf_counter()
        found = decode(int(line))
        seconds = time.perf_counter() - started
        assert [len(row) for row in found] == [int(line)] * task["rows"], "too few new ids"
        answer = {
            "seconds": seconds,
            "ids": hashlib.sha256(str(found).encode()).hexdigest()[:12],
            "memory": trainer.peak_memory(task["device"]),
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
