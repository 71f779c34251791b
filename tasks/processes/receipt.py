"""The receipt: a stage's events for its starter, as JSON lines.

The stage appends each event as it happens, and the flow reads the receipt while the stage runs.
The existence of a receipt means that the stage ran; printed text is for people. A receipt holds
run ids, times and addresses, and is therefore never written to an output folder.
"""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "GPTMILL_RECEIPT"


def tell(event: str, **facts: Any) -> None:
    """Append an event to the receipt, if the starter requested a receipt."""
    path = os.environ.get(VARIABLE)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


class ReceiptReader:
    """Reader of the events appended since the previous read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the events of all new complete lines.

        A half-written line waits for the next call.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self.position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]
