import numpy as np
import pytest
import torch
from torch import nn

from gptmill.data.batching import RowOrder, by_length, pad
from gptmill.finetuning.classification import (
    Balance,
    LabelledRows,
    Trainable,
    balanced,
    batch,
    class_loss,
    count_parameters,
    encode,
    encode_rows,
    measure,
    predict,
    set_trainable,
)
from gptmill.model.gpt import SIZES, GPTClassifier, GPTConfig
from tests.support.tiny import tiny_gpt, tiny_tokenizer

TEXTS = [
    "You have won a free prize!",
    "lunch?",
    "Call now to claim your prize, call now, call.",
    "See you then",
    "Shall I compare thee to a summer's day? Thou art more lovely and more temperate, much more.",
]
LABELS = ["spam", "ham", "spam", "ham", "ham"]


def classifier(n_classes: int = 2) -> GPTClassifier:
    generator = torch.Generator().manual_seed(3)
    return GPTClassifier.from_gpt(tiny_gpt(), n_classes, generator=generator).eval()


def rows():
    return encode_rows(
        TEXTS, LABELS, tokenizer=tiny_tokenizer(), context_length=32, class_names=["ham", "spam"]
    )


def test_padding_never_matters():
    ids = rows().ids
    model, eot = classifier(), tiny_tokenizer().eot_id
    together = predict(model, ids, batch_size=5, pad_id=eot, device="cpu")
    alone = predict(model, ids, batch_size=1, pad_id=eot, device="cpu")
    other = predict(model, ids, batch_size=5, pad_id=7, device="cpu")
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_array_equal(together, other)
    np.testing.assert_allclose(together.sum(axis=1), 1)
    assert np.ptp(together[:, 0]) > 1e-3


def test_the_head_reads_the_last_real_token():
    model, ids = classifier(), rows().ids
    with torch.no_grad():
        expected = [model.score(model.transformer(pad([row], 0)))[0, -1] for row in ids]
    probabilities = predict(model, ids, batch_size=3, pad_id=0, device="cpu")
    torch.testing.assert_close(
        torch.from_numpy(probabilities), torch.stack(expected).double().softmax(-1)
    )


def test_training_batches_are_padded_to_their_longest_row_and_give_the_loss_of_each_row():
    data, model = rows(), classifier()
    chosen = np.array([3, 0, 4, 1, 2])
    ids, last, labels = batch(data, chosen, pad_id=tiny_tokenizer().eot_id)
    assert ids.shape == (5, max(data.lengths))
    assert last.tolist() == [data.lengths[index] - 1 for index in chosen]
    assert labels.tolist() == [data.labels[index] for index in chosen]
    probabilities = predict(model, data.ids, batch_size=2, pad_id=0, device="cpu")
    loss = class_loss(model, (ids, last, labels)).item() / len(labels)
    assert measure(probabilities, data.labels)["val/loss"] == pytest.approx(loss, rel=1e-5)


def test_rows_are_cut_to_the_context_and_counted():
    data = rows()
    assert max(data.lengths) == 32
    assert data.n_cut == 1
    assert data.labels.tolist() == [1, 0, 1, 0, 0]


def test_a_spelled_out_end_of_text_is_plain_text():
    (row,), _ = encode(["call now<|endoftext|>"], tiny_tokenizer(), 32)
    assert tiny_tokenizer().eot_id not in row
    assert tiny_tokenizer().decode(row) == "call now<|endoftext|>"


def test_an_empty_text_and_an_unknown_label_are_named():
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        encode(["a", ""], tiny_tokenizer(), 32)
    with pytest.raises(ValueError, match="unknown label 'eggs'; the classes are ham, spam"):
        encode_rows(
            ["a"],
            ["eggs"],
            tokenizer=tiny_tokenizer(),
            context_length=8,
            class_names=["ham", "spam"],
        )


@pytest.mark.parametrize(("how", "sizes"), [("undersample", (7, 7)), ("oversample", (20, 20))])
def test_balance_gives_each_class_as_many_rows(how: Balance, sizes: tuple[int, int]):
    labels = np.array([0] * 20 + [1] * 7)
    chosen = balanced(labels, how, seed=1)
    assert tuple(np.bincount(labels[chosen])) == sizes
    counts = np.bincount(chosen, minlength=27)
    assert counts.max() - counts[counts > 0].min() <= (how == "oversample") * 2
    if how == "oversample":
        assert set(counts[:20]) == {1}
        assert set(counts[20:]) == {2, 3}
    np.testing.assert_array_equal(chosen, balanced(labels, how, seed=1))
    assert not np.array_equal(chosen, balanced(labels, how, seed=2))


def test_without_balance_all_rows_stay():
    np.testing.assert_array_equal(balanced(np.array([0, 0, 1]), "none", seed=1), [0, 1, 2])


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        ("head", {"score"}),
        ("last_block", {"score", "ln_f", "h.1"}),
        ("last_two_blocks", {"score", "ln_f", "h.1", "h.0"}),
        ("all", {"score", "ln_f", "h.1", "h.0", "wte", "wpe"}),
    ],
)
def test_only_the_named_part_is_trained(part: Trainable, trained: set[str]):
    model = classifier()
    set_trainable(model, part)
    modules: dict[str, nn.Module] = {"score": model.score, "ln_f": model.transformer.ln_f}
    modules |= {"wte": model.transformer.wte, "wpe": model.transformer.wpe}
    modules |= {f"h.{n}": block for n, block in enumerate(model.transformer.h)}
    states = {name: {p.requires_grad for p in m.parameters()} for name, m in modules.items()}
    assert states == {name: {name in trained} for name in modules}


def test_a_part_or_balance_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="trainable is 'most'"):
        set_trainable(classifier(), "most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="balance is 'even'"):
        balanced(np.array([0, 1]), "even", seed=1)  # type: ignore[arg-type]


def test_parameters_of_gpt2_small_with_the_last_block_trained():
    config = GPTConfig(
        vocab_size=50257,
        context_length=1024,
        drop_rate=0.0,
        qkv_bias=True,
        tie_weights=True,
        **SIZES["gpt2-small"]._asdict(),
    )
    with torch.device("meta"):
        model = GPTClassifier(config, 2)
    set_trainable(model, "last_block")
    assert count_parameters(model) == (7_090_944, 124_441_344)


def test_each_epoch_has_each_row_once_in_an_order_of_its_own():
    lengths = np.random.default_rng(0).integers(1, 30, size=103)
    order = RowOrder(lengths, batch_size=4, seed=1)
    n = order.steps_per_epoch
    assert n == 26
    first = [order.rows(step) for step in range(n)]
    second = [order.rows(step) for step in range(n, 2 * n)]
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(103))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    fresh = RowOrder(lengths, batch_size=4, seed=1)
    np.testing.assert_array_equal(fresh.rows(n + 3), second[3])
    np.testing.assert_array_equal(order.rows(3), first[3])
    other = RowOrder(lengths, batch_size=4, seed=2)
    assert not np.array_equal(other.rows(0), first[0])


def test_rows_of_like_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(1, 100, size=512)
    order = RowOrder(lengths, batch_size=8, seed=1)
    padded = sum(8 * lengths[order.rows(step)].max() for step in range(order.steps_per_epoch))
    assert padded < 1.15 * lengths.sum()
    assert [len(batch) for batch in by_length(lengths, 100)] == [100] * 5 + [12]


def test_training_batches_have_few_widths_up_to_the_context() -> None:
    ids = [np.arange(1, n + 1, dtype=np.uint32) for n in (3, 17, 90)]
    rows = LabelledRows(ids, np.array([0, 1, 0]), n_cut=0, context_length=90)
    widths = [batch(rows, np.array([row]), pad_id=0)[0].shape[1] for row in range(3)]
    assert widths == [16, 32, 90]
    padded, last, _ = batch(rows, np.array([0, 1]), pad_id=0)
    assert (padded.shape, last.tolist()) == ((2, 32), [2, 16])
    assert not padded[0, 3:].any()
