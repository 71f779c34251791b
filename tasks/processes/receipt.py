"""The receipt: what a stage tells whoever started it, one JSON object a line, as it happens.

The flow reads it while the stage runs. A receipt that exists means that the stage ran;
printed text is for people. It holds run ids, times and addresses, and so never lies in
an output folder.
"""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "GPTMILL_RECEIPT"


def tell(event: str, **facts: Any) -> None:
    """Append one event to the receipt, if anybody asked for one."""
    path = os.environ.get(VARIABLE)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


class ReceiptReader:
    """Reads the events that were appended since it last looked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the whole lines that are new; a line half written waits for the next call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
