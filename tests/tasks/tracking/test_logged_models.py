"""Logged models: what lies in them, and that they answer as their checkpoints do, elsewhere."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    load_classifier,
    save_causal_lm,
    save_classifier,
)
from gptmill.finetuning.classification import encode, predict
from gptmill.finetuning.instructions import answers, default_template
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.gpt import GPTClassifier
from tasks.project.environment import ROOT
from tasks.tracking.models import (
    PACKAGES,
    SERVED,
    ServedKind,
    log_model,
    requirements,
)
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

# mlflow's own doing, nothing of ours is involved: it uses what sqlalchemy 2.1 and pandas 4
# give up, and warns of its own type hints when it is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
TEXTS = ["You have won a prize", "See you at lunch", "x"]
QUESTIONS = [
    {"instruction": "What jumps?", "input": ""},
    {"instruction": "Say it again.", "input": "the lazy dog"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[ServedKind, Path]:
    """Tiny checkpoints of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    tokenizer, body = tiny_tokenizer(), tiny_gpt(tiny_config(context_length=256), seed=15)
    save_causal_lm(root / "lm", body, tokenizer)
    classifier = GPTClassifier.from_gpt(tiny_gpt(seed=2), 3)
    save_classifier(root / "classifier", classifier, tokenizer, class_names=["a", "b", "c"])
    return {"generator": root / "lm", "assistant": root / "lm", "classifier": root / "classifier"}


@pytest.fixture(scope="module")
def logged(
    folders: dict[ServedKind, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[ServedKind, Path]]:
    """The folder in the artifact store of each kind's logged model."""
    root = tmp_path_factory.mktemp("store")
    patch = pytest.MonkeyPatch()
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    experiment = mlflow.create_experiment("serving", artifact_location=(root / "kept").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        found = {kind: log_model(kind, folders[kind], name=kind) for kind in SERVED}
    yield {kind: Path(info.artifact_path.removeprefix("file://")) for kind, info in found.items()}
    mlflow.set_tracking_uri(before)
    patch.undo()


def elsewhere(code: str, *arguments: str, folder: Path) -> Any:
    """Run Python in another folder, without this project on its path; return the JSON it prints."""
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOAD_AND_PREDICT = """
import json, sys, mlflow, pandas as pd
found = {}
for kind, (folder, rows, params) in json.loads(sys.argv[1]).items():
    model = mlflow.pyfunc.load_model(folder)
    found[kind] = model.predict(pd.DataFrame(rows), params=params).to_dict("records")
import gptmill
print(json.dumps({"code": gptmill.__file__, **found}))
"""


@pytest.fixture(scope="module")
def answered(
    logged: dict[ServedKind, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What the three models answer in a process of its own, in a folder of its own."""
    draws = {"max_new_tokens": 9, "temperature": 1.5, "top_k": 20, "seed": 3}
    asked: dict[ServedKind, tuple[list[dict[str, str]], dict[str, Any]]] = {
        "classifier": ([{"text": text} for text in TEXTS], {}),
        "assistant": (QUESTIONS, {"max_new_tokens": 7}),
        "generator": ([{"prompt": "the fox"}, {"prompt": ""}], draws),
    }
    requests = {kind: (str(logged[kind]), *rows) for kind, rows in asked.items()}
    folder = tmp_path_factory.mktemp("elsewhere")
    found = elsewhere(LOAD_AND_PREDICT, json.dumps(requests), folder=folder)
    code = found.pop("code")
    assert code == str(logged["classifier"] / "code" / "gptmill" / "__init__.py")
    return dict(found)


def classified(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    model, names = load_classifier(folder)
    tokenizer = tiny_tokenizer()
    rows, _ = encode(texts, tokenizer, model.config.context_length)
    shares = predict(model, rows, batch_size=2, pad_id=tokenizer.eot_id, device="cpu")
    return [
        {"label": names[row.argmax()]}
        | {f"p_{name}": pytest.approx(share) for name, share in zip(names, row, strict=True)}
        for row in shares
    ]


def test_a_logged_model_is_code_and_checkpoint_and_no_pickle(
    logged: dict[ServedKind, Path], folders: dict[ServedKind, Path]
) -> None:
    for kind, model in logged.items():
        files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
        assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
        assert f"served_{kind}.py" in files
        assert "code/gptmill/model/gpt.py" in files
        kept = model / "artifacts" / folders[kind].name / "model.safetensors"
        assert kept.samefile(folders[kind] / "model.safetensors"), "a link and no copy"
        recorded = (model / "requirements.txt").read_text(encoding="utf-8").split()
        assert set(requirements()) < set(recorded)
        assert f"mlflow=={mlflow.__version__}" in recorded


def test_a_served_file_imports_nothing_but_gptmill_and_what_it_requires() -> None:
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gptmill.checkpoint.checkpoint, gptmill.finetuning.classification
import gptmill.finetuning.instructions, gptmill.generation.decoder
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    found = elsewhere(code, str(ROOT / "src"), folder=ROOT / "tests")
    heavy = {"sklearn", "scipy", "matplotlib", "prefect", "dvc", "transformers", "tasks", "flows"}
    assert not heavy.intersection(found)
    for path in (ROOT / "tasks" / "tracking").glob("served_*.py"):
        imports = [line.split()[1].split(".")[0] for line in path.read_text("utf-8").splitlines()
                   if line.startswith(("import ", "from "))]  # fmt: skip
        assert set(imports) <= {"gptmill", "mlflow", "pandas", "pathlib", "typing"}, path
        # the process of chat templates imports jinja2
        assert {*PACKAGES, "gptmill"} <= {*found, *imports, "jinja2"}, path


def test_the_classifier_answers_elsewhere_as_its_checkpoint(
    answered: dict[str, list[dict[str, Any]]], folders: dict[ServedKind, Path]
) -> None:
    assert answered["classifier"] == classified(folders["classifier"], TEXTS)


def test_the_assistant_answers_elsewhere_as_its_checkpoint(
    answered: dict[str, list[dict[str, Any]]], folders: dict[ServedKind, Path]
) -> None:
    model, tokenizer = load_causal_lm(folders["assistant"]), tiny_tokenizer()
    expected = answers(model, QUESTIONS, tokenizer, default_template(tokenizer), max_new_tokens=7)
    assert [row["answer"] for row in answered["assistant"]] == [reply.text for reply in expected]
    assert expected[0].text != expected[1].text


def test_the_generator_continues_elsewhere_as_its_checkpoint(
    answered: dict[str, list[dict[str, Any]]], folders: dict[ServedKind, Path]
) -> None:
    model, tokenizer = load_causal_lm(folders["generator"]), tiny_tokenizer()
    config = GenerationConfig(max_new_tokens=9, temperature=1.5, top_k=20, top_p=1.0)
    prompts = [tokenizer.encode("the fox"), [tokenizer.eot_id]]
    new_ids = generate(model, prompts, config, stop_ids={tokenizer.eot_id}, seed=3)
    expected = [tokenizer.decode(ids) for ids in new_ids]
    assert [row["text"] for row in answered["generator"]] == expected


def test_the_assistant_takes_rows_without_an_input(
    logged: dict[ServedKind, Path], folders: dict[ServedKind, Path]
) -> None:
    model = mlflow.pyfunc.load_model(str(logged["assistant"]))
    found = model.predict(pd.DataFrame({"instruction": ["What jumps?"]}), {"max_new_tokens": 5})
    tokenizer = tiny_tokenizer()
    template = default_template(tokenizer)
    expected = answers(
        load_causal_lm(folders["assistant"]), QUESTIONS[:1], tokenizer, template, max_new_tokens=5
    )
    assert list(found["answer"]) == [reply.text for reply in expected]
    with pytest.raises(mlflow.MlflowException, match="instruction"):
        model.predict(pd.DataFrame({"question": ["What jumps?"]}))


def test_an_edit_in_place_of_a_file_is_noticed_before_use(
    logged: dict[ServedKind, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(logged["classifier"], tmp_path / "downloaded")
    weights = next(model.rglob("model.safetensors"))
    os.utime(weights)
    mlflow.pyfunc.load_model(str(model))  # another time, the same bytes
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match=r"model\.safetensors was changed after the model was log"):
        mlflow.pyfunc.load_model(str(model))
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        mlflow.pyfunc.load_model(str(model))


# ---- served over HTTP


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def serve(port: int, tmp_path: Path) -> Iterator[Any]:
    """Start `mlflow models serve` on a model; ended with all its workers when the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(model: Path) -> str:
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("PYTHONPATH", None)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        words = f"-m mlflow models serve -m {model} --env-manager local --port {port}"
        with (tmp_path / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words.split()],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        _wait_until_up(f"http://127.0.0.1:{port}/ping", process, tmp_path / "server.log")
        return f"http://127.0.0.1:{port}/invocations"

    yield start
    for process in started:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text("utf-8")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    pytest.fail(log.read_text("utf-8"))


def _post(address: str, content: Any) -> Any:
    request = urllib.request.Request(
        address, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())["predictions"]


@pytest.mark.slow
def test_mlflow_serves_the_classifier(
    logged: dict[ServedKind, Path], folders: dict[ServedKind, Path], serve: Any
) -> None:
    address = serve(logged["classifier"])
    found = _post(address, {"dataframe_records": [{"text": text} for text in TEXTS]})
    assert found == classified(folders["classifier"], TEXTS)
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(address, {"dataframe_records": [{"message": "no such column"}]})
    assert refused.value.code == 400
    refused.value.close()


@pytest.mark.slow
def test_mlflow_serves_the_assistant(
    logged: dict[ServedKind, Path], folders: dict[ServedKind, Path], serve: Any
) -> None:
    address = serve(logged["assistant"])
    content = {"dataframe_records": QUESTIONS, "params": {"max_new_tokens": 6}}
    found = _post(address, content)
    model, tokenizer = load_causal_lm(folders["assistant"]), tiny_tokenizer()
    expected = answers(model, QUESTIONS, tokenizer, default_template(tokenizer), max_new_tokens=6)
    assert found == [{"answer": reply.text} for reply in expected]
