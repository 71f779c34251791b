"""The chat page: its policy, and a talk on it in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.serving.about import as_html
from gptmill.serving.app import PAGE, content_security_policy
from tests.support.browser import (
    ENTER,
    FOUND,
    RELEASE,
    SHIFT,
    Browser,
    browser,
)
from tests.support.talkers import (
    Server,
    endless,
    make_models,
    serving,
)
from tests.support.tiny import tiny_tokenizer

in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(None in FOUND, reason="chromium and chromedriver are not installed"),
]
ECHO = "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace("<!doctype", ""))
    assert "innerHTML" not in page
    assert " style=" not in page
    assert not re.search(r" on[a-z]+=", page)


def test_the_policy_allows_the_pages_own_script_and_style_alone() -> None:
    policy = content_security_policy("<style>a</style><script>b</script>")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("One\ntwo", "<p>One<br />\ntwo</p>"),
        ("- a\n- **b**", "<ul>\n<li>a</li>\n<li><strong>b</strong></li>\n</ul>"),
        ("| a |\n|---|\n| 1 |", "<table>"),
        ("<script>alert(1)</script>", "&lt;script&gt;"),
        ("a <b onclick=x>b</b>", "<p>a &lt;b onclick=x&gt;b&lt;/b&gt;</p>"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ('[a](https://x.org/"onclick="x)', 'href="https://x.org/%22onclick=%22x"'),
        ("![a](https://x.org/p.png)", '<p>!<a href="https://x.org/p.png">a</a></p>'),
    ],
)
def test_markdown_becomes_html_and_html_stays_text(text: str, html: str) -> None:
    assert html in as_html(text)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_models(tmp_path_factory.mktemp("models"))
    tokenizer = tiny_tokenizer()
    model = endless(tokenizer.eot_id, 2**16)
    save_causal_lm(root / "chatterbox", model, tokenizer, chat_template=ECHO)
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with serving(models / "assistant") as server:
        yield server


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    """A new window; how it looked at the end, also of a test that failed, is kept in `page.png`."""
    with browser(tmp_path) as window:
        yield window
        window.screenshot(tmp_path / "page.png")


def test_the_page_can_tell_what_model_answers(server: Server, models: Path) -> None:
    about = httpx.get(f"{server.url}/v1/models").json()["data"][0]["gptmill"]
    assert (about["kind"], about["context_length"], len(about["examples"])) == ("assistant", 512, 3)
    size = (models / "assistant" / "model.safetensors").stat().st_size
    assert about["parameters"] == pytest.approx(size / 4, rel=0.05)
    found = httpx.post(f"{server.url}/v1/markdown", json={"text": "*so*"})
    assert found.text == "<p><em>so</em></p>\n"
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert httpx.post(f"{server.url}/v1/markdown", json={"markdown": ""}).status_code == 400


def test_the_page_is_served_with_its_policy(server: Server) -> None:
    found = httpx.get(server.url)
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-security-policy"] == content_security_policy(found.text)


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_talk(self, window: Browser, server: Server) -> None:
        window.open(server.url)
        window.until(lambda: window.texts("#name") == ["assistant"])
        window.click("#tune")
        window.clear("#temperature")
        window.type("#temperature", "0")
        window.type("#tokens", "24")
        asked = "What <b>jumps</b>?"
        expected = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={
                "model": "assistant",
                "messages": [{"role": "user", "content": asked}],
                "temperature": 0,
                "max_tokens": 24,
            },
        ).json()["choices"][0]["message"]["content"]
        window.type("#message", asked + ENTER)
        window.until(lambda: not window.shown("#stop") and len(window.texts(".turn")) == 2)
        assert window.texts(".turn.user p") == [asked]
        assert window.run("return turns[1].content") == expected
        window.until(lambda: window.texts(".turn.assistant .rich") != [])
        assert window.texts(".turn.assistant .note") == ["Cut off at the maximum length."]
        assert window.run("return document.querySelectorAll('.turn b').length") == 0
        window.type("#message", "Why?" + SHIFT + ENTER + RELEASE + "Now." + ENTER)
        window.until(lambda: not window.shown("#stop") and len(window.texts(".turn")) == 4)
        assert window.texts(".turn.user p")[1] == "Why?\nNow."
        window.click("#fresh")
        assert window.texts(".turn") == []
        assert window.shown("#empty")
        assert window.log() == []

    def test_the_oldest_turns_are_left_out_when_the_context_is_full(
        self, window: Browser, server: Server
    ) -> None:
        window.open(server.url)
        window.click("#tune")
        window.type("#tokens", "100")
        for number in range(1, 5):
            window.type("#message", "the word was with the people " * 3 + ENTER)
            window.until(
                lambda n=2 * number: (
                    not window.shown("#stop")  # type: ignore[misc]
                    and len(window.texts(".turn")) == n
                )
            )
        assert any("no longer fit" in note for note in window.texts(".note"))
        assert not window.shown("#problem")
        window.type("#message", "word " * 500 + ENTER)
        window.until(lambda: window.shown("#problem"))
        assert "at most" in window.texts("#problem")[0]
        assert window.run("return document.getElementById('message').value").startswith("word")

    def test_stop_ends_the_answer_here_and_in_the_server(
        self, window: Browser, models: Path
    ) -> None:
        with serving(models / "chatterbox") as server:
            window.open(server.url)
            window.click("#tune")
            window.clear("#temperature")
            window.type("#temperature", "0")
            window.type("#message", "the" + ENTER)
            window.until(lambda: any(window.texts(".turn.assistant p")))
            assert server.health()["active"] == 1
            window.click("#stop")
            window.until(lambda: window.texts(".turn.assistant .note") == ["Stopped."])
            server.until(active=0, waiting=0)
            assert not window.shown("#stop")
            window.type("#message", "the" + ENTER)
            window.until(lambda: len(window.texts(".turn.assistant")) == 2)
            window.click("#fresh")
            server.until(active=0, waiting=0)
            assert window.texts(".turn") == []

    def test_a_key_is_asked_for(self, window: Browser, models: Path) -> None:
        words = ("--api-key-env", "GPTMILL_KEY")
        with serving(models / "assistant", *words, GPTMILL_KEY="s3cret") as server:
            window.open(server.url)
            window.until(lambda: window.shown("#problem"))
            assert "key" in window.texts("#problem")[0]
            window.type("#key", "s3cret\t")
            window.until(lambda: window.texts("#name") == ["assistant"])
            assert not window.shown("#problem")
            window.type("#tokens", "5")
            window.type("#message", "What jumps?" + ENTER)
            window.until(lambda: len(window.texts(".turn.assistant")) == 1)

    def test_a_model_that_does_not_chat_continues_a_text(
        self, window: Browser, models: Path
    ) -> None:
        with serving(models / "lm") as server:
            window.open(server.url)
            window.until(lambda: window.shown("#about"))
            assert window.texts("#about")[0].startswith("Generator: continues a text · 0.")
            assert len(window.texts("#examples button")) == 3
            window.click("#examples button")
            window.until(lambda: not window.shown("#stop") and len(window.texts(".turn")) == 2)
            assert window.texts(".turn.user p") == ["Once upon a time"]
            assert window.texts(".turn.assistant .rich") == []
            assert not window.shown("#problem")

    def test_an_answer_s_markdown_is_shown_and_its_html_is_text(
        self, window: Browser, server: Server
    ) -> None:
        window.open(server.url)
        said = "# A\n\n<img src=x onerror=alert(1)> and [b](https://x.example)\n\n- c"
        window.run("const turn = show('assistant', ''); render(turn, arguments[0])", said)
        window.until(lambda: window.texts(".rich li") == ["c"])
        assert window.texts(".rich p") == ["<img src=x onerror=alert(1)> and b"]
        assert window.run("return document.querySelector('.rich a').rel") == "noopener noreferrer"
        assert window.run("return document.querySelectorAll('.rich img').length") == 0
        assert window.log() == []

    def test_what_needs_a_label_has_one(self, window: Browser, server: Server) -> None:
        window.open(server.url)
        unnamed = window.run(
            "return [...document.querySelectorAll('input, textarea')]"
            ".filter((e) => !e.labels.length).map((e) => e.id)"
        )
        assert unnamed == []
        assert window.run("return document.activeElement.id") == "message"
