"""The energy behind outputs, in all and by part, from the metrics of the stages' runs."""

from collections.abc import Iterable
from typing import Any

from tasks.frame.energy import CPU_WH, GPU_WH
from tasks.tracking import runs as tracked

PARTS = {"GPU": GPU_WH, "CPU": CPU_WH}


def energy(runs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return the energy of stages' runs in all and by part, with the stages that recorded a part.

    Empty where no run recorded energy.
    """
    every, rows, total = list(runs), {}, 0.0
    for part, metric in PARTS.items():
        recorded = [(stage, run) for stage, run in every if metric in run.data.metrics]
        spent = sum(sum(tracked.history(run.info.run_id, metric)) for _, run in recorded)
        names = ", ".join(dict.fromkeys(stage for stage, _ in recorded))
        if recorded:
            rows[part] = f"{spent:,.3f} Wh in {names}"
            total += spent
    return {"in all": f"{total:,.3f} Wh", **rows} if rows else {}
