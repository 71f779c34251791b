import math

import pytest
import torch
import torch.nn.functional as F

from gptmill.model.head_loss import head_loss


def test_head_loss_and_its_gradients_are_those_of_torch():
    torch.manual_seed(1)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (20,))
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    ours = head_loss(hidden, weight, targets)
    found = torch.autograd.grad(3 * ours, (hidden, weight))
    torch.testing.assert_close(ours, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_head_loss_in_bf16_is_as_near_to_the_truth_as_autocast_is():
    torch.manual_seed(1)
    hidden = torch.randn(200, 16, requires_grad=True)
    weight = torch.randn(500, 16, requires_grad=True)
    targets = torch.randint(500, (200,))
    exact = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    truth = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(hidden, weight, targets)
        plain = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    found = torch.autograd.grad(ours, (hidden, weight))
    autocast = torch.autograd.grad(plain, (hidden, weight))
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
    for one, other, right in zip(found, autocast, truth, strict=True):
        assert one.dtype == torch.float32
        assert (one - right).norm() < 1.1 * (other - right).norm()


@pytest.mark.parametrize("n_targets", [1, 16, 40, 41])
def test_in_parts_it_is_the_same_loss_with_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, n_targets: int
) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(n_targets, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (n_targets,))
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    monkeypatch.setattr("gptmill.model.head_loss.LARGEST", 8 * 64)  # 8 rows of 50 ids, padded
    ours = head_loss(hidden, weight, targets)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad(3 * ours, (hidden, weight))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(hidden, weight, targets), plain)


def test_in_parts_in_bf16_it_is_as_near_to_the_truth_as_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(200, 16, requires_grad=True)
    weight = torch.randn(500, 16, requires_grad=True)
    targets = torch.randint(500, (200,))
    exact = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    truth = torch.autograd.grad(exact, (hidden, weight))
    errors = []
    for largest in (2**28, 2**14):
        monkeypatch.setattr("gptmill.model.head_loss.LARGEST", largest)
        with torch.autocast("cpu", torch.bfloat16):
            ours = head_loss(hidden, weight, targets)
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
        found = torch.autograd.grad(ours, (hidden, weight))
        errors.append([(one - other).norm() for one, other in zip(found, truth, strict=True)])
    for whole, in_parts in zip(*errors, strict=True):
        assert in_parts < 1.1 * whole


def test_head_loss_survives_a_target_of_no_probability():
    hidden = torch.full((1, 1), 1000.0, requires_grad=True)
    loss = head_loss(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert math.isfinite(loss.item())
    assert loss.item() > 80


def test_without_gradients_head_loss_is_torchs_to_the_bit():
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(9, 4), torch.randn(30, 4), torch.randint(30, (9,))
    with torch.no_grad():
        plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        assert head_loss(hidden, weight, targets) == plain


def test_the_operator_in_parts_is_what_torch_asks_of_one() -> None:
    operator = torch.ops.gptmill.head_loss_in_parts.default
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(30, 4, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    inputs = (hidden, weight, torch.randint(30, (5,)), torch.float32, 2)
    torch.library.opcheck(operator, inputs, test_utils=checks)


def test_the_operator_is_what_torch_asks_of_one():
    operator = torch.ops.gptmill.head_loss.default
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(30, 4, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    targets = torch.randint(30, (5,))
    torch.library.opcheck(operator, (hidden, weight, targets, torch.float32), test_utils=checks)
