"""A training that was stopped and one that was not end in the same bytes."""

import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptmill.model.objectives import LANGUAGE
from gptmill.training.guard import GuardConfig
from gptmill.training.state.store import StateStore
from tests.support.courses import (
    GUARD,
    OPTIMIZER,
    STOPPING,
    batch_at,
    run,
    trainer,
    weights_hash,
)
from tests.support.tiny import tiny_config, tiny_gpt

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "muon": {"optimizer": replace(OPTIMIZER, name="muon")},
    "best": {"stopping": replace(STOPPING, keep="best")},
    "micro": {"micro_batch": 3},
    "rollback": {"guard": GuardConfig(spike=0, action="rollback", limit=3)},
    "rollback and best": {
        "guard": GuardConfig(spike=0, action="rollback", limit=3),
        "stopping": replace(STOPPING, keep="best"),
    },
}


class Stop(BaseException):
    """What a signal becomes."""


def new_model() -> Any:
    return tiny_gpt(tiny_config(drop_rate=0.2))


def losing(model: Any, *, broken: tuple[int, ...] = ()) -> Any:
    """Return an objective whose loss is no number on some batches."""
    first = {tuple(batch_at(number)[0][0].tolist()) for number in broken}

    def loss(module: Any, batch: Any) -> Any:
        bad = tuple(batch[0][0].tolist()) in first
        return LANGUAGE.loss(module, batch) * (float("nan") if bad else 1.0)

    return replace(LANGUAGE, loss=loss)


def validation(model: Any) -> dict[str, float]:
    ids, targets = batch_at(1000)
    return {"val/loss": LANGUAGE.loss(model, (ids, targets)).item()}


def course(model: Any, folder: Path | None, kind: str, **changed: Any) -> Any:
    broken = (4,) if "rollback" in kind else ()
    store = None if folder is None else StateStore(folder, every=0, keep=2)
    settings = {
        "objective": losing(model, broken=broken),
        "evaluate": lambda: validation(model),
        "sample": lambda step: f"sample {step}",
        "sample_every": 4,
        "store": store,
    }
    return trainer(model, **(settings | KINDS[kind] | changed))


def facts(steps: Any) -> list[tuple[Any, ...]]:
    """Return what is the same of two steps however they were timed, the last of each number."""
    final = {step.step: step for step in steps}
    return [
        (s.step, s.loss, s.learning_rate, s.grad_norm, s.batch, s.evaluation, s.sample, s.tokens)
        for _, s in sorted(final.items())
    ]


def uninterrupted(kind: str) -> tuple[str, Any]:
    model = new_model()
    steps = list(course(model, None, kind).steps())
    return weights_hash(model), facts(steps)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stop", [1, 3, 5, 7, 8])
def test_a_training_whose_caller_left_goes_on_to_the_same_bytes(
    tmp_path: Path, kind: str, stop: int
) -> None:
    model = new_model()
    with closing(course(model, tmp_path, kind).steps()) as steps:
        for step in steps:
            if step.step == stop:
                break
    model = new_model()
    again = course(model, tmp_path, kind)
    assert again.resumed_at == stop
    found = list(again.steps())
    assert (weights_hash(model), facts(found)) == uninterrupted(kind)
    assert [step.step for step in found if step.replayed] == list(range(1, stop + 1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_stopped_at_every_step_in_every_place(tmp_path: Path, kind: str) -> None:
    """One stop in the loss, one in the evaluation, one in the batches, over and over."""
    countdown = [0]

    def perhaps() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Stop

    def patient(model: Any) -> Any:
        inner = losing(model, broken=(4,) if "rollback" in kind else ())

        def loss(module: Any, batch: Any) -> Any:
            perhaps()
            value = inner.loss(module, batch)
            perhaps()
            return value

        return replace(inner, loss=loss)

    def looked_at(model: Any) -> dict[str, float]:
        perhaps()
        return validation(model)

    stops = 0
    for patience in range(2, 60):
        model = new_model()
        objective, countdown[0] = patient(model), patience
        changed = {"objective": objective, "evaluate": lambda model=model: looked_at(model)}
        try:
            steps = list(course(model, tmp_path, kind, **changed).steps())
            break
        except Stop:
            stops += 1
    assert stops >= 4
    assert (weights_hash(model), facts(steps)) == uninterrupted(kind)


def test_a_signal_in_the_middle_of_an_update_waits_for_its_end(tmp_path: Path) -> None:
    def handler(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGTERM, handler)
    try:
        model = new_model()
        training = course(model, tmp_path, "plain")
        usual = training._optimizer.step
        rates: list[float] = []

        def step(rate: float) -> None:
            rates.append(rate)
            if len(rates) == 4:
                signal.raise_signal(signal.SIGTERM)
            usual(rate)

        training._optimizer.step = step
        with pytest.raises(Stop):
            list(training.steps())
    finally:
        signal.signal(signal.SIGTERM, before)
    model = new_model()
    again = course(model, tmp_path, "plain")
    assert again.resumed_at == 4
    steps = list(again.steps())
    assert (weights_hash(model), facts(steps)) == uninterrupted("plain")


def test_a_finished_state_gives_the_weights_without_a_step(tmp_path: Path) -> None:
    for kind in ("plain", "best"):
        folder = tmp_path / kind
        list(course(new_model(), folder, kind).steps())
        model = new_model()
        nothing = replace(LANGUAGE, loss=lambda model, batch: 1 / 0)
        again = course(model, folder, kind, objective=nothing, evaluate=None)
        steps = list(again.steps())
        assert all(step.replayed for step in steps)
        assert (weights_hash(model), facts(steps)) == uninterrupted(kind)


def test_a_damaged_state_costs_steps_and_no_bytes(tmp_path: Path) -> None:
    with closing(course(new_model(), tmp_path, "plain").steps()) as steps:
        for step in steps:
            if step.step == 6:
                break
    path = max(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    model = new_model()
    again = course(model, tmp_path, "plain")
    assert again.resumed_at < 6
    steps = list(again.steps())
    assert (weights_hash(model), facts(steps)) == uninterrupted("plain")


def test_an_update_that_broke_off_leaves_no_state(tmp_path: Path) -> None:
    training = course(new_model(), tmp_path, "plain", store=StateStore(tmp_path, every=99, keep=2))

    def step(rate: float) -> None:
        raise Stop

    training._optimizer.step = step
    with pytest.raises(Stop):
        list(training.steps())
    assert list(tmp_path.iterdir()) == []


def test_frozen_weights_are_not_stored(tmp_path: Path) -> None:
    model = new_model()
    model.transformer.wte.weight.requires_grad_(False)
    list(course(model, tmp_path, "plain").steps())
    found = StateStore(tmp_path, every=0, keep=2).load()
    assert found is not None
    assert "model/transformer.wpe.weight" in found.tensors
    assert not any("wte" in name for name in found.tensors)


def test_guards_rules_are_taken_from_the_state(tmp_path: Path) -> None:
    """Bad steps in a row count on across a stop."""
    guard = replace(GUARD, limit=3)
    broken = {"objective": losing(None, broken=(3, 4, 5))}
    with closing(course(new_model(), tmp_path, "plain", guard=guard, **broken).steps()) as steps:
        for step in steps:
            if step.step == 5:
                break
    assert step.fault == "loss nan"
    with pytest.raises(ValueError, match="diverged at step 6"):
        list(course(new_model(), tmp_path, "plain", guard=guard, **broken).steps())


def test_nothing_is_stored_without_a_store() -> None:
    assert len(run(new_model())) == 8
    assert torch.get_num_threads() >= 1
