"""A headless Chromium, driven through the W3C WebDriver protocol (https://www.w3.org/TR/webdriver2/).

The protocol is JSON over HTTP, and what the tests need of it is a few lines: no client library.
"""

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

FOUND = (shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver"))
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference
PATIENCE = 200.0  # a browser that starts on a busy machine takes its time
ENTER, SHIFT, RELEASE = "\ue007", "\ue008", "\ue000"


class Browser:
    """One window: what a person does with it, and what can be seen in it."""

    def __init__(self, session: str) -> None:
        self.session = session

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        found = httpx.post(f"{self.session}/{path}", json=content, timeout=PATIENCE).json()["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def open(self, url: str) -> None:
        self._post("url", {"url": url})

    def run(self, script: str, *words: Any) -> Any:
        """Run JavaScript in the page, by the debugger's rights and not by the page's."""
        return self._post("execute/sync", {"script": script, "args": list(words)})

    def _element(self, selector: str) -> str:
        found = self._post("element", {"using": "css selector", "value": selector})
        reference: str = found[ELEMENT]
        return reference

    def click(self, selector: str) -> None:
        self._post(f"element/{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._post(f"element/{self._element(selector)}/value", {"text": text})

    def clear(self, selector: str) -> None:
        self._post(f"element/{self._element(selector)}/clear", {})

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def shown(self, selector: str) -> bool:
        script = "return document.querySelector(arguments[0]).checkVisibility()"
        return bool(self.run(script, selector))

    def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.run("return document.body.innerText")
            time.sleep(0.05)

    def log(self) -> list[str]:
        """Return what the page's console has been told: refused scripts and connections too."""
        found = self._post("se/log", {"type": "browser"})
        return [entry["message"] for entry in found]

    def screenshot(self, path: Path) -> None:
        found = httpx.get(f"{self.session}/screenshot", timeout=PATIENCE).json()["value"]
        path.write_bytes(base64.b64decode(found))

    def resize(self, width: int, height: int) -> None:
        self._post("window/rect", {"width": width, "height": height})


@contextmanager
def browser(folder: Path, *, dark: bool = False, names: str = "") -> Iterator[Browser]:
    """Open a window with a profile of its own; it and its driver end with the block.

    `names` are hosts that the browser is to find on this machine.
    """
    program, driver = FOUND
    assert program is not None
    assert driver is not None
    with subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            line = next(line for line in lines if "started successfully on port" in line)
            port = line.rstrip().rstrip(".").rsplit(" ", 1)[1]
            asked = {
                "capabilities": {"alwaysMatch": _wishes(program, folder, dark=dark, names=names)}
            }
            found = httpx.post(
                f"http://127.0.0.1:{port}/session", json=asked, timeout=PATIENCE
            ).json()
            assert "sessionId" in found["value"], found
            window = Browser(f"http://127.0.0.1:{port}/session/{found['value']['sessionId']}")
            try:
                yield window
            finally:
                httpx.delete(window.session, timeout=PATIENCE)
        finally:
            process.terminate()


def _wishes(program: str, folder: Path, *, dark: bool, names: str) -> dict[str, Any]:
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=900,760",
        f"--user-data-dir={folder / 'profile'}",
        *(["--force-dark-mode"] if dark else []),
        *([f"--host-resolver-rules=MAP {names} 127.0.0.1"] if names else []),
    ]
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": program, "args": words},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
