"""The command line as processes of their own: its JSON, its errors, its exit statuses."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gptmill.checkpoint.checkpoint import load_causal_lm, load_classifier
from gptmill.cli.chat import obey
from gptmill.cli.frame import verbs
from gptmill.cli.options import origin
from gptmill.evaluation import perplexity
from gptmill.finetuning.classification import encode, predict
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.talkers import (
    answer,
    command,
    environment,
    gptmill,
    make_models,
    mistake,
)
from tests.support.tiny import TINY_TEXT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_models(tmp_path_factory.mktemp("models"))
    (root / "text.txt").write_text(TINY_TEXT, encoding="utf-8")
    (root / "adapter").mkdir()
    adapter = {"base_model_name_or_path": "the/base"}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (root / "empty").mkdir()
    return root


# ---- the frame


def test_the_verbs_are_the_contract() -> None:
    expected = {"import", "export", "score", "generate", "classify", "chat", "serve", "estimate"}
    assert verbs().keys() == expected
    listed = gptmill("--help").stdout
    assert all(verb in listed for verb in expected)
    assert gptmill("--version").stdout == f"gptmill {metadata.version('gptmill')}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://App.Example.org", "https://app.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abc", "chrome-extension://abc"),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(text: str, expected: str) -> None:
    assert origin(text) == expected


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from gptmill.cli.frame import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'prefect', 'fastapi'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.endswith("[]\n")


def test_no_verb_imports_an_orchestrator(models: Path) -> None:
    code = (
        "import sys; from gptmill.cli.frame import main\n"
        f"main(['generate', {str(models / 'lm')!r}, 'x', '--json'])\n"
        "import gptmill.serving.server\n"
        "print(sorted({'prefect', 'mlflow', 'dvc', 'yaml', 'ruamel'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.endswith("[]\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["generate"], "MODEL, PROMPT"),
        (["generate", "lm", "x", "--top-k", "many"], "--top-k: invalid int value: 'many'"),
        (["generate", "lm", "x", "--temperature", "nan"], "--temperature: invalid number"),
        (["generate", "lm", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "lm", "x", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["generate", "lm", "x", "--top-p", "2"], "top_p is 2.0"),
        (["generate", "lm", "x", "--beams", "0"], "--beams: 0 is below 1"),
        (["generate", "lm", "x", "--stop", ""], "--stop is empty"),
        (["generate", "lm", ""], "PROMPT is empty"),
        (["generate", "lm", b"\xff"], "PROMPT is not UTF-8"),
        (["generate", "missing", "x"], "missing does not exist"),
        (["generate", "text.txt", "x"], "text.txt is a file: `gptmill import"),
        (["generate", "empty", "x"], "empty is not a model: the folder has no config.json"),
        (["generate", "adapter", "x"], "an adapter, which needs its base model, the/base"),
        (["generate", "classifier", "x"], "holds a classifier, not a language model"),
        (["chat", "classifier"], "holds a classifier"),
        (["chat", "lm"], "lm has no chat template"),
        (["serve", "classifier"], "holds a classifier"),
        (["serve", "lm", "--allow-origin", "*"], "--allow-origin: '*' is not an origin; allowed"),
        (["serve", "lm", "--allow-origin", "a.example"], "'a.example' is not an origin"),
        (["serve", "lm", "--allow-origin", "http://a.example/x"], "is not an origin"),
        (["serve", "lm", "--allow-origin", "http://a.example:x"], "is not an origin"),
        (["score", "classifier", "text.txt"], "holds a classifier"),
        (["score", "lm", "missing.txt"], "missing.txt: No such file"),
        (["score", "lm", "empty"], "empty is a folder"),
        (["score", "lm", "short.txt"], "the text has 1 tokens: at least 2 are needed"),
        (["score", "lm", "latin1.txt"], "latin1.txt is not UTF-8"),
        (["score", "lm", "text.txt", "--stride", "65"], "stride is 65: allowed is 1 to"),
        (["score", "lm", "text.txt", "--context-length", "65"], "context_length is 65"),
        (["classify", "lm", "x"], "holds a language model, not a classifier"),
        (["classify", "classifier", "x", ""], "text 2 of 2 is empty"),
        (["classify", "classifier"], "TEXT has no text: give at least one"),
        (["classify", "classifier", "x", "--file", "text.txt"], "either --file or TEXT"),
        (["classify", "classifier", "--file", "gone.txt"], "gone.txt: No such file"),
        (["classify", "classifier", "--file", "a.csv"], "a.csv needs one column text; the first"),
        (["classify", "classifier", "--file", "a.jsonl"], "a.jsonl, line 1 is not JSON"),
        (["classify", "classifier", "--file", "b.jsonl"], "b.jsonl, line 2 has no text"),
        (["export", "lm", "classifier", "--format", "hf"], "classifier exists already"),
        (["export", "lm", "no/where", "--format", "hf"], "no does not exist"),
        (["export", "lm", "out", "--format", "onnx"], "--format: invalid choice: 'onnx'"),
        (["export", "empty", "out", "--format", "hf"], "empty is not a model"),
        (["import", "lm", "classifier"], "classifier exists already"),
    ],
)
def test_a_users_mistake_is_one_sentence(models: Path, words: list[Any], message: str) -> None:
    (models / "short.txt").write_text("x", encoding="utf-8")
    (models / "latin1.txt").write_bytes(b"caf\xe9 caf\xe9")
    (models / "a.csv").write_text("label,message\nham,x\n", encoding="utf-8")
    (models / "a.jsonl").write_text("{\n", encoding="utf-8")
    (models / "b.jsonl").write_text('{"text": "x"}\n{"texts": "x"}\n', encoding="utf-8")
    assert message in mistake(*map(os.fsdecode, words), cwd=models)


def test_a_model_and_a_tokenizer_that_do_not_belong_together(models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "lm" / "config.json").read_text(encoding="utf-8"))
    for file in (models / "lm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors" in mistake("generate", tmp_path, "x")
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_head": "x"}), encoding="utf-8")
    assert "n_head" in mistake("generate", tmp_path, "x")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "config.json is not UTF-8 JSON" in mistake("generate", tmp_path, "x")
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    assert "config.json is not a JSON object" in mistake("generate", tmp_path, "x")


def test_a_full_disk_and_a_reader_that_leaves(models: Path) -> None:
    few = ["generate", "lm", "x", "--max-new-tokens", "9"]
    for words in (few, [*few, "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command(*words),
                cwd=models,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
        assert done.returncode == 2
        assert done.stderr == "gptmill generate: standard output: No space left on device\n"
        with subprocess.Popen(
            command(*words),
            cwd=models,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == 0


def test_a_disk_that_fills_up_leaves_nothing_behind(models: Path, tmp_path: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    error = mistake("export", models / "lm", tmp_path / "out", "--format", "hf", preexec_fn=no_room)
    assert "arge" in error  # "File too large", in whichever words
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_command_in_a_word(models: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(
        command("score", models / "lm", tmp_path / "pipe"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        with (tmp_path / "pipe").open("w"):  # opens when the command does
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert process.stderr.read() == "gptmill score: interrupted\n"


# ---- verbs


def test_score_gives_what_the_library_measures(models: Path) -> None:
    model, tokenizer = load_causal_lm(models / "lm"), Tokenizer.from_folder(models / "lm")
    for words, length, stride in (
        ([], 64, 64),
        (["--context-length", "16"], 16, 16),
        (["--context-length", "16", "--stride", "5"], 16, 5),
    ):
        found = answer("score", models / "lm", models / "text.txt", *words)
        expected = perplexity.measure(
            model, tokenizer, TINY_TEXT, context_length=length, stride=stride
        )
        assert list(found) == ["loss", "perplexity", "bits_per_byte", "tokens"]
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
        assert found["tokens"] == expected.tokens
    assert "perplexity" in gptmill("score", models / "lm", models / "text.txt").stdout


def test_generate_gives_what_the_library_generates(models: Path) -> None:
    model, tokenizer = load_causal_lm(models / "lm"), Tokenizer.from_folder(models / "lm")
    config = GenerationConfig(max_new_tokens=12, temperature=0.8, top_k=50, top_p=0.95)
    ids = tokenizer.encode("The quick")
    expected = generate(model, [ids], config, stop_ids=[tokenizer.eot_id], seed=7)[0]
    drawn = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--seed", "7"]
    words = ["generate", models / "lm", "The quick", "--max-new-tokens", "12", *drawn]
    found = answer(*words)
    assert list(found)[:3] == ["text", "ids", "tokens_per_second"]
    assert (found["prompt_tokens"], found["dropped_tokens"]) == (len(ids), 0)
    assert found["ids"] == expected
    assert found["text"] == tokenizer.decode(expected)
    assert found["tokens_per_second"] > 0
    assert gptmill(*words).stdout == found["text"]
    assert answer(*words[:2], "-", *words[3:], stdin="The quick")["ids"] == expected


def test_generate_stops_before_a_stop_string(models: Path) -> None:
    words = ["generate", models / "lm", "The quick", "--max-new-tokens", "30"]
    whole = answer(*words)["text"]
    stop = whole[10:12]
    found = answer(*words, "--stop", stop, "--stop", "never said")
    assert found["text"] == whole[: whole.index(stop)]
    assert gptmill(*words, "--stop", stop).stdout == found["text"]


def test_generate_searches_with_beams(models: Path) -> None:
    model, tokenizer = load_causal_lm(models / "lm"), Tokenizer.from_folder(models / "lm")
    config = GenerationConfig(max_new_tokens=12, temperature=0, top_k=0, top_p=1, beams=3)
    ids = [tokenizer.encode("The quick")]
    expected = generate(model, ids, config, stop_ids=[tokenizer.eot_id], seed=0)[0]
    words = ["generate", models / "lm", "The quick", "--max-new-tokens", "12", "--beams", "3"]
    found = answer(*words)
    assert found["ids"] == expected
    assert found["text"] == tokenizer.decode(expected)
    assert "a beam search draws nothing" in mistake(*words, "--temperature", "1")


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_generate_with_fewer_bits(models: Path, weights: str) -> None:
    words = ["generate", models / "lm", "The quick", "--max-new-tokens", "12"]
    assert len(answer(*words, "--weights", weights)["ids"]) == 12


def test_export_and_import_give_the_model_again(models: Path, tmp_path: Path) -> None:
    found = answer("export", models / "lm", tmp_path / "lm.gguf", "--format", "gguf")
    assert found["out"] == str(tmp_path / "lm.gguf")
    back = answer("import", tmp_path / "lm.gguf", tmp_path / "back")
    assert back["out"] == str(tmp_path / "back")
    assert list(back["files"]) == ["lm.gguf"]
    scores = [
        answer("score", folder, models / "text.txt")["loss"]
        for folder in (models / "lm", tmp_path / "back")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert gptmill("export", models / "lm", tmp_path / "hf", "--format", "hf").returncode == 0


def test_generate_streams(models: Path) -> None:
    words = ["generate", models / "endless", "The quick", "--max-new-tokens", "8000"]
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert process.poll() is None
        process.kill()


def test_classify_gives_what_the_library_predicts(models: Path) -> None:
    texts = ["You have won a free prize!", "See you at lunch", "x" * 200]
    model, names = load_classifier(models / "classifier")
    tokenizer = Tokenizer.from_folder(models / "classifier")
    rows, _ = encode(texts, tokenizer, model.config.context_length)
    shares = predict(model, rows, batch_size=1, pad_id=tokenizer.eot_id, device="cpu")
    found = answer("classify", models / "classifier", *texts)
    assert [row["text"] for row in found] == texts
    for row, expected in zip(found, shares, strict=True):
        assert list(row) == ["text", "label", "probabilities"]
        assert row["label"] == names[expected.argmax()]
        assert list(row["probabilities"]) == names
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    done = gptmill("classify", models / "classifier", *texts)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [r["label"] for r in found]
    assert "1 of 3 texts are longer" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("some.txt", "\ufeffYou have won\r\n\r\nSee you\tat lunch\r\n"),
        ("some.csv", "label,text\nspam,You have won\nham,See you\tat lunch\n"),
        ("some.jsonl", '{"text": "You have won"}\n\n"See you\\tat lunch"\n'),
        ("-", "You have won\nSee you\tat lunch"),
    ],
)
def test_classify_reads_lines_tables_and_standard_input(
    models: Path, tmp_path: Path, name: str, content: str
) -> None:
    texts = ["You have won", "See you\tat lunch"]
    expected = answer("classify", models / "classifier", *texts)
    if name == "-":
        words, stdin = ["-"], content
    else:
        (tmp_path / name).write_bytes(content.encode())
        words, stdin = ["--file", str(tmp_path / name)], ""
    assert answer("classify", models / "classifier", *words, stdin=stdin) == expected
    lines = gptmill("classify", models / "classifier", *words, stdin=stdin).stdout.splitlines()
    assert [line.split("\t")[2] for line in lines] == ["You have won", '"See you\\tat lunch"']


def test_a_dropped_prompt_is_told(models: Path) -> None:
    words = ["generate", models / "lm", "The quick " * 100, "--max-new-tokens", "3"]
    found = answer(*words)
    context = load_causal_lm(models / "lm").config.context_length
    assert found["dropped_tokens"] == found["prompt_tokens"] - context > 0
    assert f"the first {found['dropped_tokens']:,} are dropped" in gptmill(*words).stderr
    words = ["generate", models / "lm", "The", "--max-new-tokens", str(context)]
    assert "dropped on the way" in gptmill(*words).stderr


def test_score_reads_a_file_as_training_does(models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + TINY_TEXT.replace("\n", "\r\n").encode())
    expected = answer("score", models / "lm", models / "text.txt")
    assert answer("score", models / "lm", tmp_path / "text.txt") == expected


# ---- chat


def test_chat_answers_line_by_line_in_the_models_own_template(models: Path) -> None:
    words = ["chat", models / "assistant", "--max-new-tokens", "30"]
    done = gptmill(*words, stdin="What jumps?\n\n/help\n")
    assert (done.returncode, done.stderr) == (0, "")
    # what was asked and answered before stands in the second prompt; a pipe has no commands
    template = Template.read(models / "assistant")
    assert template is not None
    talk = [{"role": "user", "content": "What jumps?"}]
    written = ["generate", models / "assistant", "--max-new-tokens", "30"]
    first = answer(*written, template.render(talk))["text"]
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "/help"}]
    tokenizer = Tokenizer.from_folder(models / "assistant")
    second = generate(
        load_causal_lm(models / "assistant"),
        [template.encode(tokenizer, talk)],
        GenerationConfig(max_new_tokens=30, temperature=0, top_k=0, top_p=1),
        stop_ids=template.stop_ids(tokenizer),
        seed=0,
    )[0]
    assert done.stdout == f"{first}\n{tokenizer.decode(second)}\n"


def test_chat_leaves_out_whole_turns_when_the_context_is_full(models: Path) -> None:
    words = ["chat", models / "assistant", "--max-new-tokens", "150"]
    done = gptmill(*words, stdin="What jumps?\n" * 4)
    assert done.returncode == 0
    assert "the oldest turns, 1 in all" in done.stderr
    assert "fit the model" in mistake(*words, stdin="word " * 400)


def test_chat_in_a_terminal(models: Path) -> None:
    """Ctrl-C stops an answer and the talk goes on; /help lists the commands; Ctrl-D ends it."""
    pid, terminal = pty.fork()
    words = ["chat", models / "assistant", "--max-new-tokens", "200", "--temperature", "1"]
    if pid == 0:
        os.execve(sys.executable, command(*words), environment(TERM="dumb"))
    read_until(terminal, b"Ctrl-D ends.\r\n> ")
    os.write(terminal, b"What jumps?\n")
    read_until(terminal, b"What jumps?\r\n")
    os.read(terminal, 1)
    os.write(terminal, b"\x03")
    seen = read_until(terminal, b"\r\n> ")
    assert b"(stopped)" in seen
    assert b"\x1b[" not in seen
    for command_line, said in (
        (b"/help\n", b"/system TEXT  begin a new conversation with"),
        (b"/reset\n", b"(a new conversation)"),
        (b"/rest\n", b"no command /rest; /help lists the commands"),
        (b"/system Be brief.\n", b"with this system message)"),
    ):
        os.write(terminal, command_line)
        assert said in read_until(terminal, b"\r\n> ")
    os.write(terminal, b"\x04")
    read_until(terminal, b"\r\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_commands_of_a_chat_change_the_conversation() -> None:
    """A system message stays until another is set."""
    asked, system = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be brief."}
    for line, before, after in (
        ("/reset", [system, asked], [system]),
        ("/reset now", [system, asked], [system, asked]),
        ("/system  Be brief. ", [asked], [system]),
        ("/system", [system, asked], []),
        ("/help", [asked], [asked]),
    ):
        history = [*before]
        obey(line, history)
        assert history == after, line


def read_until(terminal: int, wanted: bytes) -> bytes:
    seen = b""
    start = time.monotonic()
    while wanted not in seen:
        assert time.monotonic() - start < 60, seen
        seen += os.read(terminal, 4096)
    return seen


@pytest.mark.slow  # its client tries again for half a minute
def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    words = ("import", "owner/name", tmp_path / "out", "--revision", "0" * 40)
    error = mistake(*words, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "owner/name at 0000" in error
    assert "cannot be fetched from http://127.0.0.1:9: " in error
