"""Pages of a finished pipeline run in MLflow and Prefect: the report, and the gate's decisions."""

from prefect.artifacts import create_markdown_artifact

from flows import pages
from flows.flow_states import FlowNote
from flows.registry.review import Reviewed, as_markdown, away
from flows.trees.apart import Apart
from flows.trees.here import Here
from tasks.tracking.record import RunRecord
from tasks.tracking.store import AwayError

REPORT = "report.html"
"""The file of the pipeline's run with the report on the artifacts."""


def attach_report(tree: Here | Apart, parent: RunRecord, title: str) -> list[str]:
    """Attach the page on the artifacts; return a sentence where there is no page."""
    try:
        parent.text(tree.report(title), REPORT)
    except ValueError as error:  # the results of the run stand all the same
        return [f"MLflow gets no report on this run: {error}"]
    return []


def announce(tree: Here | Apart, parent: RunRecord, note: FlowNote) -> list[str]:
    """Register and judge the models; return the sentences with news."""
    try:
        reviewed = tree.review()
    except AwayError as error:
        return [away(error)]
    news = [one for one in reviewed if one.is_news]
    parent.tags({f"gate.{one.kind}": one.sentence[:5000] for one in news})
    for one in news:
        if one.page is not None:
            parent.text(one.page, _comparison_file(one))
    if news:
        note.send(lambda: _gate_page(reviewed, parent.id))
    return [one.sentence for one in news]


def _comparison_file(one: Reviewed) -> str:
    return f"compare-{one.kind}.html"


def _gate_page(reviewed: list[Reviewed], run: str) -> None:
    text = "; ".join(f"{one.kind} {one.version} {one.state}" for one in reviewed if one.is_news)
    links = [
        f"- [{one.kind}: comparison with the champion]"
        f"({pages.file_address(run, _comparison_file(one))})"
        for one in reviewed
        if one.page is not None
    ]
    page = "\n".join([as_markdown(reviewed), "", *links])
    create_markdown_artifact(page, key="gate", description=text)
