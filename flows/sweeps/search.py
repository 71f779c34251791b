"""Optuna search: trial params, and the study of finished trials.

The params of trial `number` are a function of the search, the number and the finished trials
before trial `number`, and of nothing more. Recording finished trials is therefore enough: an
interrupted trial draws the same params again, and a sweep that was stopped continues as if
never stopped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from flows.sweeps.file import Domain, Range, Search, Sweep
from flows.sweeps.params import Changes, encoded

SIGNIFICANT = 4  # digits of a drawn fraction: easy to paste, and finer than needed


def open_study(sweep: Sweep) -> optuna.Study:
    """Open the study of a sweep, or create the study.

    The study is a SQLite file. Optuna's own tools can open the file, too.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = sweep.folder / "study.db"
    if not path.exists():
        # complete or absent: a store killed during its creation does not open again
        partial = path.with_name(".study.db.partial")
        partial.unlink(missing_ok=True)
        storage = _storage(partial)
        optuna.create_study(
            storage=storage, study_name=sweep.name, direction=sweep.search.direction
        )
        storage.remove_session()
        storage.engine.dispose()
        partial.replace(path)
    return optuna.load_study(storage=_storage(path), study_name=sweep.name)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path}")


def suggest(search: Search, number: int, trials: Sequence[FrozenTrial]) -> Changes:
    """Return the params of trial `number`.

    The params depend on the first `number` finished trials.
    """
    if search.sampler == "grid":
        return search.grid[number]
    study = optuna.create_study(direction=search.direction, sampler=_sampler(search, number))
    study.add_trials(list(trials)[:number])
    drawn = study.ask(_distributions(search)).params
    return {key: _value(search.domain(key), drawn[key]) for key in search.space}


def _sampler(search: Search, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    return TPESampler(seed=seed) if search.sampler == "tpe" else RandomSampler(seed=seed)


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    return {key: _distribution(search.domain(key)) for key in search.space}


def _distribution(domain: Domain) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution([encoded(choice) for choice in domain])
    low, high, step = domain.low, domain.high, domain.step
    if step is not None:
        high = domain.steps()[-1]  # an end that no step reaches is never drawn
    if domain.whole:
        return IntDistribution(int(low), int(high), log=domain.log, step=int(step or 1))
    return FloatDistribution(low, high, log=domain.log, step=step)


def _value(domain: Domain, drawn: Any) -> Any:
    """Return a drawn value in the form for params.yaml."""
    if not isinstance(domain, Range):
        return json.loads(drawn)
    if domain.whole or domain.step is not None:
        return drawn
    return min(max(float(f"{drawn:.{SIGNIFICANT}g}"), domain.low), domain.high)


def record(
    study: optuna.Study,
    search: Search,
    params: Changes,
    *,
    value: float | None,
    facts: dict[str, Any],
) -> None:
    """Add a finished trial to the study.

    The addition is a single transaction. A trial without a value is recorded as failed.
    """
    encoded_params = {
        key: params[key] if isinstance(search.domain(key), Range) else encoded(params[key])
        for key in search.space
    }
    trial = create_trial(
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        value=value,
        params=encoded_params,
        distributions=_distributions(search),
        user_attrs=facts,
    )
    study.add_trial(trial)


def params_of(search: Search, trial: FrozenTrial) -> Changes:
    """Return a trial's params in the form for params.yaml."""
    return {
        key: trial.params[key]
        if isinstance(search.domain(key), Range)
        else json.loads(trial.params[key])
        for key in search.space
    }


def best(search: Search, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the best of the successful trials, or None.

    The first trial wins where several trials have the best value.
    """
    successful = [trial for trial in trials if trial.value is not None]
    sign = 1 if search.direction == "minimize" else -1
    return min(
        successful, key=lambda trial: (sign * _trial_value(trial), trial.number), default=None
    )


def _trial_value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
