"""How far our logits are from transformers', for each form of weights and many shapes.

`PYTHONPATH=src:. python -m tests.support.parity` prints the table; test_forms.py holds
each to 1e-4. Weights are random, norms and biases too; a dash is a form that cannot hold the shape.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.formats.exporting import export_model
from gptmill.formats.importing import import_model
from gptmill.model.gpt import GPTConfig
from tests.library.formats.test_forms import GPT2S, LLAMAS
from tests.support.forms import (
    book_state,
    openai_tensors,
    some_ids,
    their_gpt2,
    their_llama,
    write_openai,
)
from tests.support.tiny import tiny_tokenizer

FORMS = ("safetensors", "shards", "bin", "openai", "book", "gguf", "out")


def differences(config: GPTConfig, folder: Path) -> dict[str, float]:
    """Return the largest difference of a logit by form; `out`: ours, opened by transformers."""
    theirs = their_gpt2(config) if config.llama is None else their_llama(config)
    words = folder / "words"
    words.mkdir()
    tiny_tokenizer().save(words, context_length=32)
    theirs.save_pretrained(folder / "safetensors")
    theirs.save_pretrained(folder / "shards", max_shard_size="20KB")
    theirs.save_pretrained(folder / "bin")
    (folder / "bin" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "bin" / "pytorch_model.bin")
    sources = {name: folder / name for name in ("safetensors", "shards", "bin")}
    usual = config.norm_eps == 1e-5 and config.llama is None
    if usual:
        sources["book"] = folder / "book.pth"
        torch.save(book_state(theirs), sources["book"])
    if usual and config.tie_weights and config.hidden_dim is None:
        sources["openai"] = folder / "openai"
        write_openai(sources["openai"], config, openai_tensors(theirs))
    ids = some_ids(config)
    with torch.no_grad():
        expected = theirs(ids).logits
        found = {}
        for name, source in sources.items():
            ours = folder / f"from {name}"
            import_model(str(source), ours, tokenizer=words, n_heads=config.n_heads)
            found[name] = _distance(load_causal_lm(ours)(ids), expected)
        opened = AutoModelForCausalLM.from_pretrained(folder / "from safetensors")
        found["out"] = _distance(opened(ids).logits, expected)
        if config.vocab_size >= tiny_tokenizer().n_vocab:
            try:
                export_model(folder / "from safetensors", folder / "a.gguf", form="gguf")
                import_model(str(folder / "a.gguf"), folder / "from gguf")
            except ValueError:
                return found  # the format has no name for such a scaling
            found["gguf"] = _distance(load_causal_lm(folder / "from gguf")(ids), expected)
    return found


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _shape(config: GPTConfig) -> str:
    family = "gpt2" if config.llama is None else "llama"
    heads = f"{config.n_heads}/{config.n_kv_heads}"
    extra = [f"ff {config.ff_dim}", "tied" if config.tie_weights else "untied"]
    if config.llama is not None and config.llama.rope_scaling is not None:
        extra.append(config.llama.rope_scaling.kind)
    sizes = f"{config.n_layers} x {config.emb_dim}, heads {heads}, context {config.context_length}"
    return f"{family}, {sizes}, {', '.join(extra)}"


def main() -> None:
    """Print the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| shape | " + " | ".join(FORMS) + " |")
    print("|---" * (len(FORMS) + 1) + "|")
    for config in [*GPT2S, *LLAMAS]:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(config, Path(folder))
        cells = [f"{found[name]:.0e}" if name in found else "-" for name in FORMS]
        print(f"| {_shape(config)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
