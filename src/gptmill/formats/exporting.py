"""Export of a checkpoint folder for other tools.

`hf` writes a Hugging Face folder in any float type, `gguf` a file for llama.cpp and its relatives,
`book` a `.pth` for the GPTModel of "Build a Large Language Model (From Scratch)".
"""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    load_classifier,
    read_special_ids,
    save_causal_lm,
    save_classifier,
)
from gptmill.checkpoint.families import family_of
from gptmill.checkpoint.mapping import file_tensors
from gptmill.checkpoint.model_card import name_commit
from gptmill.checkpoint.weights import check_finite, open_folder
from gptmill.device import check_choice
from gptmill.files import atomic_folder, removed_on_error
from gptmill.formats.gguf import ROPE_FACTORS, metadata, rope_factors
from gptmill.model.gpt import GPT, GPTClassifier
from gptmill.tokenizer.gguf import ENDS
from gptmill.tokenizer.huggingface import SPLITS
from gptmill.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

ExportFormat = Literal["hf", "gguf", "book"]
# llama.cpp's numbers for the type of most tensors in a GGUF file.
GGUF_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # kinds of token


def export_model(
    folder: Path,
    out: Path,
    *,
    form: ExportFormat,
    dtype: torch.dtype = torch.float32,
    commit: str | None = None,
) -> None:
    """Write the model in `folder` to `out`, atomically: a folder for `hf`, otherwise a file.

    Weights are rounded to `dtype`. `commit` reproduces the model, and is added to the card. Raises
    ValueError if the format cannot hold the model.
    """
    check_choice("format", form, get_args(ExportFormat))
    if dtype not in GGUF_FILE_TYPES:
        raise ValueError(f"weights are not exported as {dtype}; allowed are float32, float16, bf16")
    is_classifier = "score.weight" in open_folder(folder).shapes
    if form == "gguf" and is_classifier:
        raise ValueError(f"{folder} is a classifier, unknown to GGUF; allowed: hf, book")
    model: GPT | GPTClassifier
    class_names: Sequence[str] = ()
    if is_classifier:
        model, class_names = load_classifier(folder, dtype=dtype, mapped=True)
    else:
        model = load_causal_lm(folder, dtype=dtype, mapped=True)
    if form == "hf":
        _export_folder(folder, out, model, class_names, dtype, commit)
    elif form == "book":
        _export_book(out, model)
    elif isinstance(model, GPT):
        _export_gguf(folder, out, model, dtype)


def _export_folder(
    folder: Path,
    out: Path,
    model: GPT | GPTClassifier,
    class_names: Sequence[str],
    dtype: torch.dtype,
    commit: str | None,
) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids = read_special_ids(folder, tokenizer)
    with atomic_folder(out) as partial:
        if isinstance(model, GPT):
            template = tokenizer.chat_template
            save_causal_lm(partial, model, tokenizer, chat_template=template, dtype=dtype, ids=ids)
        else:
            save_classifier(
                partial, model, tokenizer, class_names=class_names, dtype=dtype, ids=ids
            )
        if (folder / "README.md").is_file():
            shutil.copyfile(folder / "README.md", partial / "README.md")
            if commit is not None:
                name_commit(partial, commit)


def _export_book(out: Path, model: GPT | GPTClassifier) -> None:
    """Write a state dict for the book's code, causal masks included."""
    family = family_of(model.config)
    if family.book is None:
        raise ValueError(
            f"the book's GPTModel is a GPT-2, and this model is a {family.title}; allowed: hf"
        )
    tensors = {name: t.contiguous() for name, t in file_tensors(family.book, model).items()}
    length = model.config.context_length
    mask = torch.ones(length, length).triu(diagonal=1)  # shared by all blocks, and stored once
    for name, tensor in tensors.items():
        check_finite(tensor, tensor, name)
    for layer in range(model.config.n_layers):
        tensors[f"trf_blocks.{layer}.att.mask"] = mask
    partial = _partial(out)
    with removed_on_error(partial):
        torch.save(tensors, partial)
    partial.replace(out)


def _export_gguf(folder: Path, out: Path, model: GPT, dtype: torch.dtype) -> None:
    """Write a GGUF file with metadata, tokenizer and tensors."""
    from gguf import GGUFWriter

    config = model.config
    partial = _partial(out)
    writer = GGUFWriter(partial, config.family)
    writer.add_name(folder.resolve().name)
    writer.add_file_type(GGUF_FILE_TYPES[dtype])
    for name, value in metadata(config).items():
        _add(writer, name, value)
    tokenizer = Tokenizer.from_folder(folder)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    _add_end_ids(writer, read_special_ids(folder, tokenizer).eos)
    tensors = file_tensors(family_of(config).gguf, model)
    factors = rope_factors(config)
    if factors is not None:
        tensors[ROPE_FACTORS] = factors
    with removed_on_error(partial), closing(writer):
        _write_tensors(writer, tensors, dtype)
    partial.replace(out)


def _add(writer: "GGUFWriter", name: str, value: float | str) -> None:
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    else:
        writer.add_float32(name, value)


def _add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add vocabulary, merges, special tokens and chat template.

    A model with more rows than tokens gets unused tokens, because readers compare the counts.
    """
    definition = tokenizer.definition
    if definition.split is None:
        raise ValueError(
            "the pre-tokenizer has no name in GGUF; allowed are those of "
            f"{', '.join(SPLITS)}: export as hf"
        )
    known = sorted(tokenizer.ids(), key=tokenizer.ids().__getitem__)
    spare = [f"<|unused_{index}|>" for index in range(tokenizer.n_vocab, vocab_size)]
    kinds = [CONTROL if token in definition.special else NORMAL for token in known]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(definition.split)
    writer.add_token_list([*known, *spare])
    writer.add_token_types([*kinds, *[UNUSED] * len(spare)])
    writer.add_token_merges([" ".join(merge) for merge in definition.merges])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _add_end_ids(writer: "GGUFWriter", ids: Sequence[int]) -> None:
    """Add all ids that end a text, each under a key of its own."""
    if len(ids) > len(ENDS):
        raise ValueError(
            f"the model has {len(ids)} end ids (eos_token_id), and GGUF has keys for {len(ENDS)}; "
            "remove ids from generation_config.json and config.json, or export as hf"
        )
    for key, index in zip(ENDS, ids, strict=False):
        writer.add_uint32(key, index)


def _write_tensors(writer: "GGUFWriter", tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write the tensors; vectors stay in 32 bits, as readers of GGUF expect."""
    from gguf import GGMLQuantizationType

    kinds = {
        torch.float32: GGMLQuantizationType.F32,
        torch.float16: GGMLQuantizationType.F16,
        torch.bfloat16: GGMLQuantizationType.BF16,
    }
    types = {name: dtype if t.ndim > 1 else torch.float32 for name, t in tensors.items()}
    for name, tensor in tensors.items():
        size = tensor.numel() * types[name].itemsize
        kind = np.dtype(np.float16 if types[name].itemsize == 2 else np.float32)
        writer.add_tensor_info(name, tensor.shape, kind, size, kinds[types[name]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        stored = tensor.to(types[name]).contiguous()
        check_finite(stored, tensor, name)
        writer.write_tensor_data(stored.view(torch.uint8).numpy())


def _partial(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f".{out.name}.partial")
