"""Text as its ids come in: never half a character, never what may turn out to be a stop string."""

import codecs
from collections.abc import Sequence
from typing import Protocol


class Bytes(Protocol):
    """What is needed of a tokenizer."""

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of one id."""


class TextStream:
    """Ids in, text out that is safe to show.

    All that was shown is the whole text up to its first stop string; the first is the one that is
    complete earliest, and of those that end together the one that begins earliest. Bytes that
    are not UTF-8 become replacement characters, as when all ids are decoded at once.
    """

    def __init__(self, tokenizer: Bytes, stops: Sequence[str] = ()) -> None:
        """Take the strings that end the text; raises ValueError for an empty one."""
        if not all(stops):
            raise ValueError("a stop string is empty: it must have at least one character")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, and not shown yet: a stop string may begin in it

    def feed(self, index: int) -> str:
        """Take the next id and return what can be shown now; nothing after a stop string."""
        return self._shown(self._decoder.decode(self._tokenizer.token_bytes(index)))

    def finish(self) -> str:
        """Return what was held back, when no more ids come."""
        shown = self._shown(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return shown + rest

    def _shown(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := self._held.find(stop)) >= 0
        ]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        safe = len(self._held) - max((self._begun(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def _begun(self, stop: str) -> int:
        """Return how many characters at the end of what is held begin a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)
