"""Tiny models to talk to, and the command line and server as processes of their own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.finetuning.instructions import chat_template
from gptmill.model.gpt import GPT, GPTClassifier
from tasks.project.environment import ROOT
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

Done = subprocess.CompletedProcess[str]


def environment(**extra: str) -> dict[str, str]:
    """Return an environment in which this tree's code runs, on one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "gptmill", *map(str, words)]


def gptmill(*words: str | Path, stdin: str | bytes | None = None, **options: Any) -> Done:
    """Run a verb to its end."""
    given = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
    extra = options.pop("environment", {})
    done = subprocess.run(
        command(*words),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        env=environment(**extra),
        timeout=120,
        **options,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def answer(*words: str | Path, **options: Any) -> Any:
    """Run a verb that succeeds and return its JSON."""
    done = gptmill(*words, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mistake(*words: str | Path, **options: Any) -> str:
    """Run a verb that a user's mistake ends: status 2, one sentence, nothing else."""
    done = gptmill(*words, **options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def make_models(root: Path) -> Path:
    """Write language models, one of them with a long context, an assistant and a classifier."""
    tokenizer = tiny_tokenizer()
    babbler = tiny_gpt(tiny_config(context_length=64, tie_weights=False), seed=2)
    save_causal_lm(root / "lm", babbler, tokenizer)
    save_causal_lm(root / "endless", endless(tokenizer.eot_id), tokenizer)
    talker = tiny_gpt(tiny_config(context_length=512, tie_weights=False), seed=5)
    save_causal_lm(root / "assistant", talker, tokenizer, chat_template=chat_template())
    classifier = GPTClassifier.from_gpt(tiny_gpt(seed=2), 3)
    save_classifier(
        root / "classifier", classifier, tokenizer, class_names=["ham", "spam", "other"]
    )
    return root


def endless(eot_id: int, context_length: int = 8192) -> GPT:
    """Return a model that never ends by itself at temperature 0: the end's logit is always 0."""
    model = tiny_gpt(tiny_config(context_length=context_length, tie_weights=False), seed=2)
    assert model.lm_head is not None
    model.lm_head.weight.data[eot_id] = 0
    return model


class Server:
    """A server that runs: where it is, its process, and what it says after its first line."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: list[str]) -> None:
        self.process = process
        self.url = url
        self.log = log

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health").json()
        return found

    def until(self, active: int, waiting: int) -> None:
        """Wait until so many requests are under way and so many wait."""
        for _ in range(200):
            found = self.health()
            if (found["active"], found["waiting"]) == (active, waiting):
                return
            time.sleep(0.05)
        raise AssertionError(found)


@contextmanager
def serving(model: Path, *words: str, **extra: str) -> Iterator[Server]:
    """Run a server for `model` at a free port while the block runs."""
    process = subprocess.Popen(
        command("serve", model, "--port", "0", *words),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
    )
    assert process.stderr is not None
    log: list[str] = []
    # read on, so that the server never waits for its log to be read
    reading = threading.Thread(target=lambda: log.extend(process.stderr or []), daemon=True)
    with process, process.stderr:
        try:
            line = process.stderr.readline()
            reading.start()
            assert " answers at http://" in line, line
            yield Server(process, line.split(" answers at ")[1].split(" ")[0], log)
        finally:
            process.terminate()
            process.wait(20)
            reading.join()
    assert "Traceback" not in "".join(log), "".join(log)
