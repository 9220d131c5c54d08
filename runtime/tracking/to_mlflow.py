"""To MLflow. Its run ids are its own: a run is found by its tag `isoplan.run`, the fingerprint.

A request is one transaction, and holds whole steps in their order. So the newest `tokens` say which steps MLflow has.
"""

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runtime.run_folder.curves import Point
from runtime.tracking.delivery import Delivery

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_REQUEST_METRICS, _REQUEST_PARAMS = 1000, 100
"""Most that one request may hold (mlflow/utils/validation.py)."""
_PARAM_CHARACTERS = 6000
"""Longest value of a parameter (mlflow/utils/validation.py)."""


def send(delivery: Delivery) -> None:
    """Send it."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    delivery.files.mkdir(parents=True, exist_ok=True)
    uri = delivery.tracker.server or f"sqlite:///{delivery.files / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    run = _run(client, delivery)
    last = round(run.data.metrics.get("tokens", 0) / delivery.batch_tokens)
    now_ms = int(time.time() * 1000)
    for request in _requests(point for point in delivery.points if point.step > last):
        metrics = [
            Metric(name, value, now_ms, point.step)
            for point in request
            for name, value in point.values.items()
        ]
        client.log_batch(run.info.run_id, metrics=metrics)
    tags = {"isoplan.events": ", ".join(delivery.kinds), "mlflow.note.content": delivery.event_text}
    client.log_batch(run.info.run_id, tags=[RunTag(name, text) for name, text in tags.items()])
    if delivery.finished:
        client.set_terminated(run.info.run_id, "FINISHED")


def _run(client: "MlflowClient", delivery: Delivery) -> "Run":
    """The tracker's run, made where it is absent, with its parameters."""
    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(delivery.tracker.project)
    if experiment is None:
        artifacts = (
            None if delivery.tracker.server else (delivery.files / "mlflow-artifacts").as_uri()
        )  # else beside whatever folder this was started in
        client.create_experiment(delivery.tracker.project, artifact_location=artifacts)
        experiment = client.get_experiment_by_name(delivery.tracker.project)
    found = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`isoplan.run` = '{delivery.run}'", max_results=1
    )
    if found:
        run = found[0]
    else:
        tags = {"isoplan.run": delivery.run, "isoplan.study": delivery.study}
        run = client.create_run(experiment.experiment_id, run_name=delivery.title, tags=tags)
    if not delivery.sent:  # the same values once more are no error
        params = [Param(name, text) for name, text in _flat(delivery.config)]
        for first in range(0, len(params), _REQUEST_PARAMS):
            client.log_batch(run.info.run_id, params=params[first : first + _REQUEST_PARAMS])
    return run


def _requests(points: Iterator[Point]) -> Iterator[list[Point]]:
    """The points in groups that a request may hold."""
    request: list[Point] = []
    metrics = 0
    for point in points:
        if metrics + len(point.values) > _REQUEST_METRICS:
            yield request
            request, metrics = [], 0
        request.append(point)
        metrics += len(point.values)
    if request:
        yield request


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of the configuration by their dotted names, as text."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{key}", text[:_PARAM_CHARACTERS]
