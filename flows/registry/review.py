"""Review of a finished pipeline run: new versions are registered, and the gate judges them.

An output with the hash of a version is that version: nothing new is registered. Each version is
judged once, so that a decision of `make promote` or `make rollback` stands.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.results import JUDGE, metrics_of
from flows.sides import records
from gptmill.comparing.rule import Rule
from tasks.project.graph import ancestors, lock, locked_outputs
from tasks.tracking import registry, runs, store
from tasks.tracking.registry import KINDS, OUT, Registered

if TYPE_CHECKING:
    from gptmill.comparing.gate import Decision

DECISION = "gate"
"""Tag of a version: promoted or refused."""
URI_TAG = "model.uri"
"""Tag of a run: the registered version, for `gptmill serve` and `mlflow models serve`."""


@dataclass(frozen=True)
class Reviewed:
    """The result of the review for one kind of model."""

    kind: str
    version: int | None
    state: str
    reasons: tuple[str, ...] = ()
    is_news: bool = True
    page: str | None = None
    """The page of the comparison with the champion."""

    @property
    def sentence(self) -> str:
        """Return the result in words."""
        name = f"{self.kind} version {self.version}" if self.version else self.kind
        return f"{name} {self.state}{': ' if self.reasons else ''}{'; '.join(self.reasons)}"


def review(rules: dict[str, Rule]) -> list[Reviewed]:
    """Register and judge the models in artifacts/; return a result for each kind.

    Raises AwayError while MLflow is away: the next run reviews the same models.
    """
    return registry.answered(lambda: list(_review(rules)))


def _review(rules: dict[str, Rule]) -> Iterator[Reviewed]:
    for kind, spec in KINDS.items():
        digest = locked_outputs(spec.stage).get(spec.output)
        if digest is None:
            continue
        found = Registered(kind)
        number = found.find(digest) or _add(found, digest)
        if number is None:
            yield Reviewed(
                kind,
                None,
                f"is not registered: MLflow has no model with the bytes of {spec.output} (the run "
                "that made them is in another store, or not sent yet)",
            )
            continue
        found.tag(number, _hashes(kind))
        found.make_candidate(number)
        yield _judged(found, number, rules[kind])


def _add(found: Registered, digest: str) -> int | None:
    """Register the logged model with this hash; None without such a model."""
    model = registry.logged_model(found.kind, digest)
    if model is None:
        return None
    stage = KINDS[found.kind].stage
    entries = {name: lock()[name] for name in [*ancestors(stage), stage] if name in lock()}
    data = records.of_lock(entries)["data"]
    commit = runs.git_tags()
    tags = {
        "commit": commit.get("mlflow.source.git.commit", "unknown"),
        "dirty": commit.get("git.dirty", "unknown"),
        **{f"data.{path.removeprefix('data/')}": value for path, value in data.items()},
        **_hashes(found.kind),
    }
    return found.add(model, tags)


def _hashes(kind: str) -> dict[str, str]:
    """Return tags with the hashes of the outputs that compare versions of a kind."""
    recorded = records.outputs(lock())
    return {f"{OUT}{path}": recorded[path] for path in KINDS[kind].outputs if path in recorded}


def _judged(found: Registered, number: int, rule: Rule) -> Reviewed:
    """Judge a version that has no decision yet."""
    tags = found.versions[number].tags
    if DECISION in tags:
        is_champion = number == found.champion
        before = "is the champion, unchanged" if is_champion else f"is unchanged: {tags[DECISION]}"
        return Reviewed(found.kind, number, before, is_news=False)
    decision, page = _decide(found, number, rule)
    why = "; ".join(decision.reasons)
    if decision.promoted and number != found.champion:
        best = rule.when == "better" or decision.verdict == "first" or decision.gain > 0
        found.crown(number, who=DECISION, why=why, best=best)
    word = "promoted" if decision.promoted else "refused"
    found.tag(number, {"verdict": decision.verdict, "gate.reasons": why[:5000]})
    found.tag(number, {DECISION: word})
    _tag_run(found, number, f"{word} as version {number}: {why}"[:5000])
    state = _state(found, number, decision)
    return Reviewed(found.kind, number, state, decision.reasons, page=page)


def _state(found: Registered, number: int, decision: "Decision") -> str:
    if decision.promoted:
        return "is the new champion"
    kept = f"version {found.champion} stays champion" if found.champion else "there is no champion"
    remedy = f'`make promote KIND={found.kind} VERSION={number} WHY="..."` overrides'
    return f"is refused, {kept} ({remedy})"


def _decide(found: Registered, number: int, rule: Rule) -> tuple["Decision", str | None]:
    """Return the decision against the champion, or the best champion so far, and its page."""
    from flows.sides.resolve import resolve
    from flows.sides.versions import of_number
    from gptmill.comparing.gate import Decision, judge, judge_first
    from gptmill.comparing.page import render
    from gptmill.device import device_name

    figures = metrics_of(JUDGE)
    against = found.best if rule.when == "not_worse" else found.champion
    if against is None or against == number:
        return judge_first(rule, figures), None
    with tempfile.TemporaryDirectory(prefix="gptmill-gate-") as temporary:
        try:
            opponent = of_number("A", found, against, Path(temporary))
        except ValueError as error:
            return Decision(False, "unknown", (str(error),)), None
        artifacts = resolve("B", "artifacts", Path(temporary))
        decision = judge(
            rule,
            figures,
            kind=found.kind,
            opponent=opponent,
            version=replace(artifacts, name=f"{found.kind} version {number}"),
            device=device_name("auto"),
        )
        compared = decision.comparison
        return decision, render(compared) if compared and compared.figures else None


def _tag_run(found: Registered, number: int, text: str) -> None:
    """Record the decision and the version's URI on the run, the URI on the logged model too."""
    from mlflow import MlflowClient

    version = found.versions[number]
    uri = f"{registry.MODELS}{found.name}/{number}"
    if version.run_id:
        MlflowClient().set_tag(version.run_id, DECISION, text)
        MlflowClient().set_tag(version.run_id, URI_TAG, uri)
    sentence = f"Registered as `{uri}`, for `gptmill` and `mlflow models serve -m`."
    registry.describe(version, sentence)


def as_markdown(reviewed: list[Reviewed]) -> str:
    """Return the results as a table for Prefect."""
    lines = [
        f"| {one.kind} | {one.version or ''} | {one.state} | {'; '.join(one.reasons)} |"
        for one in reviewed
    ]
    return "\n".join(
        ["| model | version | decision | reasons |", "| --- | --- | --- | --- |", *lines]
    )


def away(error: store.AwayError) -> str:
    """Return the sentence for an MLflow that is away."""
    return (
        f"MLflow is away, and the models of this run are not registered: {error}; "
        "the next `make pipeline` registers and judges them"
    )
