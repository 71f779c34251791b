"""Streaming text from ids, without half characters and without parts of stop strings."""

import codecs
from collections.abc import Sequence
from typing import Protocol


class Bytes(Protocol):
    """The part of a tokenizer that streaming needs."""

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of one id."""


class TextStream:
    """Turns ids into text that is safe to show.

    The shown text is the whole text up to the first stop string: the stop string with the earliest
    end and, among equal ends, with the earliest start. Invalid UTF-8 becomes replacement
    characters, as in decoding all ids at once.
    """

    def __init__(self, tokenizer: Bytes, stops: Sequence[str] = ()) -> None:
        """Take the strings that end the text; raise ValueError for an empty string."""
        if not all(stops):
            raise ValueError("a stop string is empty: it must have at least one character")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, but possibly the start of a stop string

    def feed(self, index: int) -> str:
        """Take the next id and return the text to show now; nothing after a stop string."""
        return self._shown(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def finish(self) -> str:
        """Return the held-back text, after the last id."""
        shown = self._shown(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return shown + rest

    def _shown(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        matches = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if matches:
            self.stopped = True
            shown, self._held = self._held[: min(matches)[1]], ""
            return shown
        safe = len(self._held) - max((self._begun(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def _begun(self, stop: str) -> int:
        """Return the length of the held-back end that starts a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)
