"""Alerts: Prefect's automations that call a webhook, and that notice silent runs.

A pipeline run that ends as failed, crashed or cancelled calls the webhook once. A run whose process
was killed sends no heartbeat any more, and is marked as crashed, which calls the webhook too.
"""

import os
from datetime import timedelta
from typing import cast
from urllib.parse import urlsplit
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict
from pydantic import SecretStr

VARIABLE = "ALERT_URL"
BLOCK, ALERT, SILENT = "gptmill-alert", "gptmill: alert", "gptmill: silent runs are crashed"
HEARTBEAT_S, SILENCE_S = 30, 180
"""Seconds between two heartbeats of a run, and without one until the run counts as crashed."""
ONCE_S = 600
"""Seconds with one call for a run: worker, run and `make ui` may each report the same end."""
RUNS = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
PIPELINE = ResourceSpecification(
    {"prefect.resource.role": "flow", "prefect.resource.name": "pipeline"}
)
BAD = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Cancelled")}
BEAT = "prefect.flow-run.heartbeat"
STATE = "flow_run.state"
TEXT = (
    f'{{"text": {{{{ (flow.name ~ " " ~ {STATE}.name ~ ", " ~ flow_run.name ~ ": " '
    f'~ ({STATE}.message or "")) | tojson }}}}, "state": {{{{ {STATE}.name | tojson }}}}, '
    '"run": {{ flow_run.id | string | tojson }}, "page": {{ (flow_run | ui_url) | tojson }}}'
)
"""The webhook's content, a template of Prefect's: JSON with the text that chat services show."""


def alert_url() -> str | None:
    """Return the address in ALERT_URL; raise ValueError for text that is no address."""
    url = os.environ.get(VARIABLE, "")
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(
            f"{VARIABLE} is no address of a webhook: http://HOST/... and https://HOST/... are"
        )
    return url or None


def set_up(url: str | None) -> None:
    """Set up the automations on Prefect's server; without `url` no alert changes."""
    _put(_silence())
    if url is None:
        return
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(method="POST", url=SecretStr(url), headers=headers)
    block_id = cast("UUID", block.save(BLOCK, overwrite=True))
    trigger = EventTrigger(
        expect=BAD,
        match=RUNS,
        match_related=PIPELINE,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        within=timedelta(seconds=ONCE_S),
    )
    action = CallWebhook(block_document_id=block_id, payload=TEXT)
    _put(Automation(name=ALERT, trigger=trigger, actions=[action]))


def _silence() -> Automation:
    trigger = EventTrigger(
        after={BEAT},
        expect={BEAT, "prefect.flow-run.Completed", "prefect.flow-run.Cached", *BAD},
        match=RUNS,
        match_related=PIPELINE,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=timedelta(seconds=SILENCE_S),
    )
    message = f"the run sent no heartbeat for {SILENCE_S} seconds: its process was killed"
    action = ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)
    return Automation(name=SILENT, trigger=trigger, actions=[action])


def _put(automation: Automation) -> None:
    """Create an automation, or update the one of the same name where it differs.

    A switch of the user stays. An update would make Prefect forget the runs that the automation
    watches: a run killed together with its worker would count as running for ever.
    """
    try:
        known = cast("Automation", Automation.read(name=automation.name))
    except ValueError:
        automation.create()
        return
    automation.id, automation.enabled = known.id, known.enabled
    if automation != known:
        automation.update()
