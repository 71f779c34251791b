"""The server as a process of its own, asked by the real `openai` client and by raw requests."""

import asyncio
import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gptmill.finetuning.instruction_rows import encode_rows
from gptmill.generation.completion import TextGenerator
from gptmill.generation.decoder import GenerationConfig
from gptmill.serving.server import Admission, listen
from tests.support.talkers import (
    Server,
    make_models,
    mistake,
    serving,
)

post = partial(httpx.post, timeout=100)
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What jumps?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with serving(models / "assistant") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def generator(models: Path) -> TextGenerator:
    return TextGenerator.open(models / "assistant")


def said(generator: TextGenerator, ids: list[int], **changes: Any) -> tuple[str, int]:
    """Return what the library says to a prompt, and how many tokens that took."""
    stops = changes.pop("stops", ())
    config = {"max_new_tokens": 24, "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    deltas = list(
        generator.stream(ids, GenerationConfig(**(config | changes)), stops=stops, seed=3)
    )
    return "".join(p.text for p in deltas), sum(p.id is not None for p in deltas)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    asked = {"model": "assistant", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**(asked | changes))


def refused(client: openai.OpenAI, **changes: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **changes)
    return caught.value


# ---- answers


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["assistant"]
    assert client.models.retrieve("assistant").owned_by == "gptmill"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("another")


def test_an_answer_is_the_librarys_to_the_prompt_of_the_training_rows(
    client: openai.OpenAI, generator: TextGenerator
) -> None:
    assert generator.template is not None
    record = {"instruction": "What jumps?", "input": "", "output": "the fox"}
    rows = encode_rows([record], generator.tokenizer, generator.template, 512)
    ids = rows.ids[0][: rows.answers[0][0].start].tolist()
    text, n_new = said(generator, ids)
    found = ask(client)
    assert found.choices[0].message.content == text
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == "length"
    assert found.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": len(ids),
        "completion_tokens": n_new,
    }
    assert found.usage.total_tokens == len(ids) + n_new


def test_a_conversation_is_rendered_whole(client: openai.OpenAI, generator: TextGenerator) -> None:
    turns = [
        {"role": "user", "content": "What jumps?"},
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    plain = [*turns[:2], {"role": "user", "content": "Why?"}]
    assert generator.template is not None
    ids = generator.template.encode(generator.tokenizer, plain)  # type: ignore[arg-type]
    assert ask(client, messages=turns).choices[0].message.content == said(generator, ids)[0]


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 1.3, "top_p": 0.9}])
def test_a_stream_says_what_a_whole_answer_says(client: openai.OpenAI, drawn: Any) -> None:
    whole = ask(client, seed=11, **drawn)
    events = list(
        ask(client, seed=11, stream=True, stream_options={"include_usage": True}, **drawn)
    )
    spoken = [event.choices[0] for event in events if event.choices]
    text = "".join(choice.delta.content or "" for choice in spoken)
    assert text == whole.choices[0].message.content
    assert spoken[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in spoken if choice.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert events[-1].usage == whole.usage
    assert events[-1].choices == []
    assert len(spoken) > 5
    assert len({event.id for event in events}) == 1


def test_equal_seeds_give_equal_texts_and_others_do_not(client: openai.OpenAI) -> None:
    texts = [
        ask(client, temperature=1, **seed).choices[0].message.content
        for seed in ({"seed": 5}, {"seed": 5}, {"seed": 6}, {}, {})
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_answers_do_not_depend_on_who_else_asks(client: openai.OpenAI) -> None:
    alone = [ask(client, seed=k, temperature=1).choices[0].message.content for k in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda k: ask(client, seed=k, temperature=1), range(6))
        assert [answer.choices[0].message.content for answer in found] == alone


def test_stop_strings_end_an_answer_before_them(
    client: openai.OpenAI, generator: TextGenerator
) -> None:
    whole = ask(client).choices[0].message.content
    stop = whole[5:8]
    for given in (stop, [stop, "never said"]):
        found = ask(client, stop=given).choices[0]
        assert found.message.content == whole[: whole.index(stop)]
        assert found.finish_reason == "stop"
        streamed = list(ask(client, stop=given, stream=True))
        text = "".join(event.choices[0].delta.content or "" for event in streamed)
        assert text == found.message.content
        assert streamed[-1].choices[0].finish_reason == "stop"


def test_several_answers_to_one_question(client: openai.OpenAI) -> None:
    found = ask(client, n=3, temperature=1, seed=4)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) == 3
    assert texts[0] == ask(client, temperature=1, seed=4).choices[0].message.content
    streamed = ["", "", ""]
    for event in ask(client, n=3, temperature=1, seed=4, stream=True):
        streamed[event.choices[0].index] += event.choices[0].delta.content or ""
    assert streamed == texts


def test_completions_take_texts_and_ids(client: openai.OpenAI, generator: TextGenerator) -> None:
    ids = generator.tokenizer.encode("The quick")
    expected, _ = said(generator, ids, max_new_tokens=16)

    def complete(given: Any, **more: Any) -> Any:
        return client.completions.create(model="assistant", prompt=given, temperature=0, **more)

    for given in ("The quick", ids, ["The quick"], [ids]):
        found = complete(given)
        assert found.choices[0].text == expected
        assert found.choices[0].finish_reason == "length"
        assert found.usage.completion_tokens == 16
    two = complete(["The quick", "The lazy dog"])
    assert [choice.text for choice in two.choices] == [
        complete(one).choices[0].text for one in ("The quick", "The lazy dog")
    ]
    streamed = "".join(event.choices[0].text for event in complete("The quick", stream=True))
    assert streamed == expected
    new_document = complete("")
    assert new_document.usage.prompt_tokens == 1
    assert complete([generator.tokenizer.eot_id]).choices[0].text == new_document.choices[0].text


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"temperature": 3}, "temperature: .* less than or equal to 2", "temperature"),
        ({"temperature": "hot"}, "temperature: ", "temperature"),
        ({"top_p": 1.5}, "top_p", "top_p"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens is 5000; after a prompt of", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "mean the same", "max_tokens"),
        ({"stop": ["a"] * 5}, "stop holds up to 4", "stop"),
        ({"stop": ""}, "none of them empty", "stop"),
        ({"n": 9}, "at most 8", "n"),
        ({"logprobs": True}, "logprobs is not supported", "logprobs"),
        ({"extra_body": {"logprobs": 0}}, "logprobs is not supported", "logprobs"),
        ({"extra_body": {"top_logprobs": False}}, "top_logprobs is not", "top_logprobs"),
        (
            {"extra_body": {"repetition_penalty": 1e-300}},
            "repetition_penalty",
            "repetition_penalty",
        ),
        ({"extra_body": {"repetition_penalty": 1e300}}, "repetition_penalty", "repetition_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported", "presence_penalty"),
        ({"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, r"messages\[0\].role", "messages"),
        ({"messages": ["x"]}, r"messages\[0\]: allowed is a JSON object", "messages"),
        ({"messages": HELLO * 513}, "has 513 messages; at most 512", "messages"),
        ({"extra_body": {"max_tokens": 10**4000}}, r"max_tokens is 1000000.*\.\.\.", "max_tokens"),
        ({"stop": [1]}, "stop: allowed are a text, and a list of up to 4 texts", "stop"),
        ({"messages": [{"role": "system", "content": "x"}]}, "allowed roles", "messages"),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, "at most 511 fit", "messages"),
        ({"extra_body": {"frobnicate": 1}}, "Unrecognized request argument", "frobnicate"),
    ],
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, changes: dict[str, Any], message: str, param: str
) -> None:
    error = refused(client, **changes)
    assert error.type == "invalid_request_error"
    assert not param or error.param == param
    with pytest.raises(openai.BadRequestError, match=message):
        raise error


USER: dict[str, Any] = {"role": "user", "content": "What jumps?"}
TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user"}, "messages[1].content is null or missing; allowed are a text, and"),
        ({"role": "user", "content": None}, "messages[1].content is null or missing; allowed"),
        ({"role": "system", "content": 5}, "messages[1].content is a number; allowed are a text"),
        (
            {"role": "user", "content": {"type": "text"}},
            "messages[1].content is an object; allowed",
        ),
        ({"role": "user", "content": [TEXT, IMAGE]}, "has part 1 of the type 'image_url'; allowed"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "of the type 'input_audio'"),
        ({"role": "user", "content": ["x"]}, "messages[1].content has part 0 of the type None"),
        ({"role": "user", "content": [{"type": "text"}]}, "content has part 0 without text"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[1].role: Input should"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls is not supp"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[1].audio is not"),
    ],
)
def test_a_message_that_is_refused_is_named_with_the_field(
    client: openai.OpenAI, message: Any, expected: str
) -> None:
    assert expected in refused(client, messages=[USER, message]).message


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant", "refusal": None, "tool_calls": [], "function_call": None}, ""),
        ({"role": "assistant", "content": None, "refusal": "No."}, "No."),
        ({"role": "assistant", "content": []}, ""),
        ({"role": "assistant", "content": "a", "name": "b", "cache_control": {"x": 1}}, "a"),
        (
            {
                "role": "assistant",
                "content": [TEXT, TEXT | {"cache_control": {"type": "ephemeral"}}],
            },
            "xx",
        ),
    ],
)
def test_harmless_fields_of_a_message_are_accepted(
    client: openai.OpenAI, message: Any, content: str
) -> None:
    plain = [USER, {"role": "assistant", "content": content}, USER]
    found, expected = (
        ask(client, messages=messages, max_tokens=4) for messages in ([USER, message, USER], plain)
    )
    assert found.choices[0].message.content == expected.choices[0].message.content
    assert found.usage == expected.usage


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    idle = {"user": "me", "presence_penalty": 0, "logprobs": False, "tool_choice": "none", "n": 1}
    assert ask(client, **idle).choices[0].message == ask(client).choices[0].message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"model": "\xff"}', b'{"a": NaN}', b"{" * 9000]
)
def test_a_body_that_is_no_request(server: Server, body: bytes) -> None:
    for path in ("chat/completions", "completions"):
        found = post(f"{server.url}/v1/{path}", content=body)
        assert found.status_code == 400
        assert found.json()["error"]["type"] == "invalid_request_error"


def test_half_a_character_in_a_message_is_refused(server: Server) -> None:
    body = b'{"model": "assistant", "messages": [{"role": "user", "content": "\\ud800"}]}'
    found = post(f"{server.url}/v1/chat/completions", content=body)
    assert found.status_code == 400


def test_large_bodies_are_not_read(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
    with socket.create_connection((host, int(port))) as announced:
        announced.sendall(f"{head}Content-Length: {5 * 2**20}\r\n\r\n".encode())
        assert b"request_too_large" in read_all(announced)
    with socket.create_connection((host, int(port))) as endless:
        endless.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        delta = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
        with suppress(ConnectionError):  # closed before all was sent
            for _ in range(100):
                endless.sendall(delta)
        with suppress(ConnectionResetError):
            endless.settimeout(60)
            assert b"413" in endless.recv(2**16)
    assert server.health()["status"] == "ok"


def test_other_paths_and_methods_are_told_in_the_same_form(server: Server) -> None:
    for path, status in (("/v1/embeddings", 404), ("/docs", 404), ("/openapi.json", 404)):
        found = httpx.get(f"{server.url}{path}")
        assert (found.status_code, "error" in found.json()) == (status, True)
    for path, methods in (
        ("/v1/completions", "POST, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
    ):
        asked = {
            method: httpx.request(method, f"{server.url}{path}")
            for method in ("OPTIONS", "HEAD", "DELETE")
        }
        assert {found.headers.get("allow", methods) for found in asked.values()} == {methods}
        assert [found.status_code for found in asked.values()] == [
            204,
            200 if "HEAD" in methods else 405,
            405,
        ]
        assert not asked["HEAD"].content


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'assistant'"):
        ask(client, model="gpt-4")


def test_names_of_other_machines_and_other_sites_are_refused(server: Server) -> None:
    def status(**headers: str) -> int:
        return httpx.get(f"{server.url}/v1/models", headers=headers).status_code

    port = server.url.rsplit(":", 1)[1]
    assert status(Host="evil.example") == 403
    assert status(Host=f"localhost:{port}") == 200
    assert status(Host=f"[::1]:{port}") == 200
    assert status(Origin="http://evil.example") == 403
    assert status(Origin="null") == 403
    assert status(Host="") == 403
    assert status(Origin=server.url) == 200
    found = httpx.options(f"{server.url}/v1/models", headers={"Origin": server.url})
    assert not [name for name in found.headers if name.startswith("access-control")]


APP = "https://app.example.org"
ASKING = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Access-Control-Request-Private-Network": "true",
}


@pytest.mark.parametrize(
    ("key", "method", "headers", "status", "allowed"),
    [
        ("secret", "OPTIONS", {"Origin": APP, **ASKING}, 200, APP),
        ("secret", "OPTIONS", {"Origin": "https://evil.example", **ASKING}, 400, None),
        ("secret", "GET", {"Origin": APP, "Authorization": "Bearer secret"}, 200, APP),
        ("secret", "GET", {"Origin": APP}, 401, APP),
        (None, "OPTIONS", {"Origin": APP, **ASKING}, 200, APP),
        (None, "GET", {"Origin": APP}, 200, APP),
        (None, "GET", {"Origin": "https://evil.example"}, 403, None),
        (None, "GET", {"Origin": "http://app.example.org"}, 403, None),
        (None, "GET", {"Origin": APP, "Host": "evil.example"}, 403, None),
    ],
)
def test_pages_of_a_named_site_may_use_the_server(
    key: str | None, method: str, headers: dict[str, str], status: int, allowed: str | None
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def ask_as_a_page() -> httpx.Response:
        admission = Admission.at("127.0.0.1", key, [APP])
        transport = httpx.ASGITransport(admission.before(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, "/v1/models", headers=headers)

    found = asyncio.run(ask_as_a_page())
    assert found.status_code == status
    assert found.headers.get("access-control-allow-origin") == allowed
    if method == "OPTIONS" and allowed:
        assert found.headers["access-control-allow-headers"] == "authorization,content-type"
        assert found.headers["access-control-allow-private-network"] == "true"


def test_a_model_without_a_template_does_not_chat(models: Path) -> None:
    with (
        serving(models / "lm") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client,
    ):
        with pytest.raises(openai.BadRequestError, match=r"no chat template.*/v1/completions"):
            ask(client, model="lm")
        found = client.completions.create(model="lm", prompt="The", max_tokens=5, temperature=0)
        assert found.usage is not None
        assert found.usage.completion_tokens == 5


# ---- keys


def test_with_a_key_nothing_below_v1_opens_without_it(models: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n", encoding="utf-8")
    ways = {
        "from-a-file": (["--api-key-file", str(tmp_path / "key")], {}),
        "s3cret": (["--api-key-env", "GPTMILL_KEY"], {"GPTMILL_KEY": "s3cret"}),
    }
    for key, (words, extra) in ways.items():
        with serving(models / "assistant", *words, **extra) as server:
            url = f"{server.url}/v1"
            for wrong in ("wrong", key + "x", "\u00e9"):
                headers = {"Authorization": f"Bearer {wrong}".encode()}
                assert httpx.get(f"{url}/models", headers=headers).status_code == 401
            assert httpx.get(f"{url}/models").json()["error"]["code"] == "invalid_api_key"
            with openai.OpenAI(base_url=url, api_key=key) as client:
                assert ask(client).usage.completion_tokens == 24
            assert httpx.get(server.url).status_code == 200
            assert server.health()["status"] == "ok"


def test_other_machines_need_a_key_or_a_word(models: Path) -> None:
    model = models / "assistant"
    assert "--api-key-env" in mistake("serve", model, "--host", "0.0.0.0")
    assert "holds no key" in mistake("serve", model, "--api-key-env", "GPTMILL_NO_SUCH_KEY")
    assert "No such file" in mistake("serve", model, "--api-key-file", "/no/such/file")
    with serving(model, "--host", "0.0.0.0", "--no-key") as server:
        port = server.url.rsplit(":", 1)[1]
        found = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Host": "any.example"})
        assert found.status_code == 200


# ---- load, leaving, ending


SHORT = {"model": "endless", "prompt": "the", "temperature": 0}  # drawn tokens could be the end


@pytest.fixture
def narrow(models: Path) -> Iterator[Server]:
    """A server that answers one request at a time and lets one wait."""
    with serving(models / "endless", "--at-once", "1", "--max-waiting", "1") as server:
        yield server


def begin(server: Server, *, stream: bool = True, n: int = 4) -> socket.socket:
    """Ask for more text than a test waits for, and do not read it."""
    asked = {
        "model": "endless",
        "prompt": "the",
        "max_tokens": 8000,
        "temperature": 0,
        "n": n,
        "stream": stream,
    }
    body = json.dumps(asked)
    host, port = server.url.removeprefix("http://").split(":")
    asked_at = socket.create_connection((host, int(port)))
    asked_at.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return asked_at


def test_a_full_line_is_an_error_and_a_client_that_leaves_makes_room(narrow: Server) -> None:
    for stream in (True, False):
        with begin(narrow, stream=stream):
            narrow.until(active=1, waiting=0)
            with (
                begin(narrow, stream=stream),
                openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="-", max_retries=0) as client,
            ):
                narrow.until(active=1, waiting=1)
                with pytest.raises(openai.InternalServerError, match="waiting already") as full:
                    client.completions.create(model="endless", prompt="the")
                assert full.value.status_code == 503
                assert full.value.response.headers["retry-after"] == "1"
            narrow.until(active=1, waiting=0)  # the one that waited has left
        narrow.until(active=0, waiting=0)  # so has the one that was answered
    found = post(f"{narrow.url}/v1/completions", json=SHORT)
    assert found.json()["usage"]["completion_tokens"] == 16


def test_a_short_answer_does_not_wait_for_a_long_one(models: Path) -> None:
    with serving(models / "endless", "--at-once", "2") as server, begin(server, n=1):
        server.until(active=1, waiting=0)
        found = post(f"{server.url}/v1/completions", json=SHORT)
        assert found.status_code == 200
        assert server.health()["active"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_what_is_under_way(narrow: Server, number: int) -> None:
    with begin(narrow) as first, begin(narrow, stream=False) as second:
        narrow.until(active=1, waiting=1)
        start = time.monotonic()
        narrow.process.send_signal(number)
        assert narrow.process.wait(10) == 0
        assert time.monotonic() - start < 5
        assert b"the server is being stopped" in read_all(first)
        assert b"503" in read_all(second)


def test_half_a_request_and_clients_that_leave_do_not_reach_the_log(models: Path) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n"
    with serving(models / "endless") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with ExitStack() as stack:
            halves = [
                stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(4)
            ]
            for half, part in zip(
                halves, ("", "POST /v1/com", head, head + '{"model":'), strict=True
            ):
                half.sendall(part.encode())
            for garbage in (b"\x16\x03\x01", head.encode() + b"x" * 99, b"GET / HTTP/9\r\n\r\n"):
                with socket.create_connection((host, int(port))) as client:
                    client.sendall(garbage)
                    assert b" 400 " in client.recv(2**16)
            with socket.create_connection((host, int(port))) as client:
                client.sendall(head.encode() + b"{")  # and leaves
            with begin(server, n=1) as client:
                server.until(active=1, waiting=0)
                assert b"200 OK" in client.recv(2**16)
            server.until(active=0, waiting=0)
            unread = stack.enter_context(begin(server, n=2))
            server.until(active=1, waiting=0)
            start = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(10) == 0
            assert time.monotonic() - start < 5
            assert [b" 503 " in read_all(half) for half in halves] == [False, True, True, True]
            assert b"200 OK" in read_all(unread)
    assert server.log == []


def read_all(asked: socket.socket) -> bytes:
    parts = []
    while part := asked.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def test_limits_of_the_servers_own(models: Path) -> None:
    words = ["--max-prompt-tokens", "8", "--max-new-tokens", "10", "--name", "mine"]
    with serving(models / "lm", *words) as server:

        def status(prompt: str, **more: Any) -> tuple[int, str]:
            body = {"model": "mine", "prompt": prompt, **more}
            found = post(f"{server.url}/v1/completions", json=body)
            return found.status_code, found.text

        assert status("the")[0] == 200
        assert status("the", max_tokens=10)[0] == 200
        assert "at most 10 are allowed" in status("the", max_tokens=11)[1]
        assert "at most 8 fit" in status("the quick brown fox jumps over the lazy dog")[1]


def test_a_port_that_is_taken_and_a_host_that_is_not_here(
    models: Path, server: Server, tmp_path: Path
) -> None:
    port = server.url.rsplit(":", 1)[1]
    assert "Address already in use" in mistake("serve", models / "lm", "--port", port)
    assert "allowed is 0 to 65535" in mistake("serve", models / "lm", "--port", "70000")
    assert "cannot listen" in mistake("serve", models / "lm", "--host", "192.0.2.1", "--no-key")
    hollow = tmp_path / "hollow"
    shutil.copytree(models / "lm", hollow, ignore=shutil.ignore_patterns("*.safetensors"))
    assert f"127.0.0.1, port {port}: Address already in use" in mistake(
        "serve", hollow, "--port", port
    ), "the port is tried before the model is loaded"


def test_a_port_belongs_to_the_first_who_asks_for_it() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port}: Address already in use; .*--port"):
            listen("127.0.0.1", port)
    for host in ("a..b", "a" * 99, "192.0.2.1"):
        with pytest.raises(ValueError, match=rf"cannot listen on {host}, port 0: .*--host takes"):
            listen(host, 0)
