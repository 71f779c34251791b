"""MLflow's model registry: versions by kind of model, and the aliases `candidate` and `champion`.

A version is a state of a stage's output. Tags hold the hashes of the outputs, so that DVC's cache
has the files behind a version.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from tasks.tracking import store
from tasks.tracking.delivery import reason_away

PREFIX = "gptmill-"
CANDIDATE, CHAMPION = "candidate", "champion"
OUT = "dvc.out."
NOTE = "mlflow.note.content"
"""MLflow's tag for a description."""
MODELS = "models:/"
"""The start of a logged model's URI, and of a version's source."""
HISTORY = "champions"
"""Tag of a kind: the numbers of its champions, the latest last."""
BEST = "best_champion"
"""Tag of a kind: the champion that `not_worse` compares with."""
REMEMBERED = 100
"""Champions kept in the history."""

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of model: the stage that makes it, and the outputs that compare its versions."""

    stage: str
    beside: tuple[str, ...]

    @property
    def output(self) -> str:
        """Return the output whose hash identifies a version."""
        return f"artifacts/{self.stage}"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return all outputs that compare versions."""
        return (self.output, *self.beside)


KINDS = {
    "generator": Kind("pretrain", ("artifacts/tokenize",)),
    "classifier": Kind("classify", ("artifacts/split/labelled",)),
    "classifier-lora": Kind("lora", ("artifacts/split/labelled",)),
    "assistant": Kind("instruct", ("artifacts/split/instructions", "artifacts/evaluate")),
}


def answered(question: Callable[[], T]) -> T:
    """Return MLflow's answer; raise AwayError with the reason while MLflow is away."""
    try:
        store.check_server()
        return question()
    except Exception as error:
        reason = reason_away(error)
        if reason is None:
            raise
        raise store.AwayError(reason) from None


class Registered:
    """The present versions of a kind in MLflow."""

    def __init__(self, kind: str) -> None:
        """Load the versions and aliases; a kind without a version is empty."""
        self.kind = kind
        self.name = f"{PREFIX}{kind}"
        self.versions: dict[int, Any] = {}
        """MLflow's record of each version, by number."""
        self.aliases: dict[str, int] = {}
        self.tags: dict[str, str] = {}
        self._load()

    def _load(self) -> None:
        found = _client().search_registered_models(f"name = '{self.name}'")
        if not found:
            return
        self.tags = dict(found[0].tags)
        self.aliases = {name: int(number) for name, number in found[0].aliases.items()}
        versions = _client().search_model_versions(f"name = '{self.name}'")
        self.versions = {int(one.version): one for one in sorted(versions, key=_number)}

    @property
    def champion(self) -> int | None:
        """Return the number of the champion."""
        return self.aliases.get(CHAMPION)

    @property
    def best(self) -> int | None:
        """Return the number of the best champion so far."""
        number = int(self.tags.get(BEST, 0))
        return number if number in self.versions else self.champion

    @property
    def earlier(self) -> int | None:
        """Return the number of the last existing champion before the present champion."""
        others = [number for number in self.champions if number != self.champion]
        return others[-1] if self.champion is not None and others else None

    @property
    def champions(self) -> list[int]:
        """Return the champions so far, with the present champion last.

        The alias counts: a person may move it in MLflow, and a command may die before it moves.
        """
        numbers = [int(word) for word in self.tags.get(HISTORY, "").split()]
        known = [number for number in numbers if number in self.versions]
        if self.champion is None:
            return known
        while known and known[-1] != self.champion and self.champion in known:
            known.pop()
        return known if known and known[-1] == self.champion else [*known, self.champion]

    def find(self, digest: str) -> int | None:
        """Return the newest version of an output with this hash."""
        output = f"{OUT}{KINDS[self.kind].output}"
        matches = [
            number for number, one in self.versions.items() if one.tags.get(output) == digest
        ]
        return max(matches, default=None)

    def add(self, model: Any, tags: Mapping[str, str]) -> int:
        """Register a logged model as the next version; return its number."""
        if not self.versions:
            self._create()
        version = _client().create_model_version(
            self.name,
            f"{MODELS}{model.model_id}",
            run_id=model.source_run_id,
            tags=dict(tags),
            model_id=model.model_id,
            description=model.tags.get(NOTE),
        )
        self._load()
        return int(version.version)

    def _create(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            _client().create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set the tags of a version whose values differ."""
        known = self.versions[number].tags
        for name, value in tags.items():
            if known.get(name) != value:
                _client().set_model_version_tag(self.name, str(number), name, value)
                known[name] = value

    def make_candidate(self, number: int) -> None:
        """Point the alias `candidate` to a version."""
        self._point(CANDIDATE, number)

    def crown(self, number: int, *, who: str, why: str, best: bool) -> None:
        """Make a version the champion; record who, when and why.

        The history is written before the alias: only the alias decides who is champion.
        """
        history = [*self.champions, number][-REMEMBERED:]
        self.tag(number, _act("champion", who, why))
        self._set(HISTORY, " ".join(map(str, history)))
        if best:
            self._set(BEST, str(number))
        self._point(CHAMPION, number)

    def step_back(self, *, who: str, why: str) -> tuple[int, int]:
        """Make the earlier champion the champion again; return both numbers."""
        left, number = self.champion, self.earlier
        assert left is not None
        assert number is not None
        self.tag(left, _act("rolled_back", who, why))
        self.tag(number, _act("champion", who, why))
        self._set(BEST, str(number))
        self._point(CHAMPION, number)
        self._set(HISTORY, " ".join(map(str, self.champions)))
        return left, number

    def _point(self, alias: str, number: int) -> None:
        if self.aliases.get(alias) != number:
            _client().set_registered_model_alias(self.name, alias, str(number))
            self.aliases[alias] = number

    def _set(self, tag: str, value: str) -> None:
        if self.tags.get(tag) != value:
            _client().set_registered_model_tag(self.name, tag, value)
            self.tags[tag] = value


def logged_model(kind: str, digest: str) -> Any:
    """Return the newest logged model of an output with this hash, None without a model."""
    experiment, output = store.connect(), KINDS[kind].output
    term = f"tags.`{OUT}{output}` = '{digest}'"
    newest = ["attributes.start_time DESC"]
    for run in _client().search_runs([experiment], term, order_by=newest):
        wanted = f"source_run_id = '{run.info.run_id}' AND name = '{KINDS[kind].stage}'"
        models = _client().search_logged_models([experiment], filter_string=wanted)
        if models:
            return models[0]
    return None


def has_files(version: Any) -> bool:
    """Return whether MLflow still has the logged model of a version."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(_client().get_logged_model(version.source.removeprefix(MODELS)).model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def describe(version: Any, text: str) -> None:
    """Add a text to the descriptions of a version's run and logged model."""
    client = _client()
    if version.run_id:
        note = client.get_run(version.run_id).data.tags.get(NOTE, "")
        client.set_tag(version.run_id, NOTE, _with(note, text))
    if has_files(version):
        model = version.source.removeprefix(MODELS)
        note = client.get_logged_model(model).tags.get(NOTE, "")
        client.set_logged_model_tags(model, {NOTE: _with(note, text)})


def _with(note: str, text: str) -> str:
    return note if text in note else f"{note}\n\n{text}".strip()


def user() -> str:
    """Return the name of the user, as MLflow records the name."""
    from mlflow.tracking.context.registry import resolve_tags

    return str(resolve_tags().get("mlflow.user", "unknown"))


def _act(name: str, who: str, why: str) -> dict[str, str]:
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    return {f"{name}.who": who, f"{name}.when": when, f"{name}.why": why}


def _number(version: Any) -> int:
    return int(version.version)


def _client() -> Any:
    from mlflow import MlflowClient

    store.connect()
    return MlflowClient()
