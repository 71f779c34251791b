"""Small tokenizers in the forms of Llama 3, Qwen 2 and Gemma, trained on the spot."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gptmill.files import read_json, write_json
from tests.support.tiny import TINY_TEXT

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [*TINY_TEXT.splitlines(keepends=True), "a  1\n", "b    12\n", "über straße, naïve café\n"]


def byte_level(pattern: str, **model: Any) -> Tokenizer:
    """Train a byte-level encoding whose text is split by a pattern first."""
    trained = Tokenizer(models.BPE(**model))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    return trained


def llama3(folder: Path) -> Path:
    """Write a tokenizer in Llama 3's form: `ignore_merges`, and a begin of text by template."""
    trained = byte_level(WORDS, ignore_merges=True)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    trained.add_special_tokens(special)
    begin = trained.token_to_id(special[0])
    template = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], begin)]
    )
    trained.post_processor = processors.Sequence([processors.ByteLevel(), template])
    config = {"bos_token": special[0], "eos_token": special[2]}
    return _write(folder, trained, config)


def qwen2(folder: Path) -> Path:
    """Write a tokenizer in Qwen 2's form: NFC, and added tokens in all three places."""
    trained = byte_level(WORDS.replace("{1,3}", ""))
    trained.normalizer = normalizers.NFC()
    trained.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    size = trained.get_vocab_size()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {
            str(size): {"content": "<|im_end|>", "special": True, **flags},
            str(size + 1): {"content": "<tool_call>", "special": False, **flags},
        },
    }
    _write(folder, trained, config)
    write_json(folder / "added_tokens.json", {"<|im_end|>": size, "<tool_call>": size + 1})
    return folder


def gemma(folder: Path) -> Path:
    """Write a tokenizer in Gemma's form: spaces as a character, bytes as a fallback."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trained.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *fallback], show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    content = json.loads(trained.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    trained = Tokenizer.from_str(json.dumps(content))
    trained.add_tokens([AddedToken("\n", normalized=False)])
    trained.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return _write(folder, trained, {"bos_token": "<bos>", "eos_token": "<eos>"})


def _write(folder: Path, trained: Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {**fixed, **config})
    assert read_json(folder / "tokenizer.json")["model"]["type"] == "BPE"
    return folder


FAMILIES = {"llama3": llama3, "qwen2": qwen2, "gemma": gemma}
