"""Files made from a user's own data, with notes for the user."""

from collections.abc import Callable, Mapping

from gptmill.sources.archive import LazyFiles


class Converted(LazyFiles):
    """Files of data/ by name, with notes on what was understood."""

    def __init__(self, files: Mapping[str, bytes | Callable[[], bytes]], *notes: str) -> None:
        """Store the files, and the notes that are not empty."""
        super().__init__(files)
        self.notes = [note for note in notes if note]
