import pytest
import torch
import torch.nn.functional as F

from gptmill.model.objectives import (
    IGNORE,
    LANGUAGE,
    drop_ignored,
    language_loss,
    mean_language_loss,
)
from tests.support.courses import CPU, batch_at
from tests.support.tiny import tiny_config, tiny_gpt


@pytest.mark.parametrize("tied", [True, False])
def test_language_loss_leaves_ignored_targets_out(tied):
    model = tiny_gpt(tiny_config(tie_weights=tied))
    ids, targets = batch_at(0)
    targets = targets.clone()
    targets[:, :5] = IGNORE
    targets[2] = IGNORE
    plain = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected = torch.autograd.grad(plain, list(model.parameters()))
    ours = language_loss(model, LANGUAGE.prepare((ids, targets))) / LANGUAGE.count((ids, targets))
    found = torch.autograd.grad(ours, list(model.parameters()))
    torch.testing.assert_close(ours, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_mean_loss_does_not_depend_on_how_rows_are_batched():
    model = tiny_gpt()
    ids, targets = batch_at(0, rows=7)
    targets = targets.clone()
    targets[:3, 2:] = IGNORE
    with torch.no_grad():
        whole = language_loss(model, drop_ignored((ids, targets))).item() / LANGUAGE.count(
            (ids, targets)
        )
    cut = [(ids[:5], targets[:5]), (ids[5:], targets[5:])]
    assert mean_language_loss(model, cut, CPU) == pytest.approx(whole, rel=1e-6)


def test_where_every_target_counts_nothing_is_looked_for():
    batch = batch_at(0)
    assert drop_ignored(batch) is batch
    assert LANGUAGE.count(batch) == batch[1].numel()
