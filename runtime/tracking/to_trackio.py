"""To Trackio. The run's fingerprint is its name, by which Trackio resumes it.

Trackio rarely raises: it warns of what it could not send, and keeps that on this machine. So its last step is read back
after each part, and a warning is an error.
"""

import os
import shutil
import warnings
from itertools import islice
from typing import TYPE_CHECKING

from runtime.tracking.delivery import Delivery, TrackerError

if TYPE_CHECKING:
    from trackio import Run

_PART_POINTS = 1000
"""Points of a part: Trackio keeps them in memory, and `finish` waits half a minute at most for all."""


def send(delivery: Delivery) -> None:
    """Send it."""
    online = delivery.tracker.server is not None
    files = delivery.files / (".part/trackio" if online else "trackio")
    os.environ["TRACKIO_DIR"] = str(files)  # read when it is imported
    if online:
        shutil.rmtree(
            files, ignore_errors=True
        )  # where Trackio keeps what a server did not take, to send it later
    else:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
            os.environ.pop(name, None)
        os.environ["HF_HUB_OFFLINE"] = "1"  # or it asks who the user is
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _send(delivery, caught)


def _send(delivery: Delivery, caught: list[warnings.WarningMessage]) -> None:
    import trackio

    run = _open(delivery, caught)
    next_step = run._next_step
    points = (point for point in delivery.points if point.step >= next_step)
    while part := list(islice(points, _PART_POINTS)):
        for point in part:
            run.log(point.values, step=point.step)
        trackio.finish()
        run = _open(delivery, caught)
        if run._next_step != part[-1].step + 1:
            raise TrackerError(f"trackio has {delivery.title} up to step {run._next_step - 1} only")
    sent = _events(delivery) if delivery.tracker.server is None else delivery.sent_events
    for event in delivery.events[sent:]:
        quiet = event.kind in ("resumed", "finished")
        level = trackio.AlertLevel.INFO if quiet else trackio.AlertLevel.WARN
        run.alert(event.kind, event.text, level, event.step)
    trackio.finish()
    _check(caught)


def _check(caught: list[warnings.WarningMessage]) -> None:
    """TrackerError where Trackio has warned that something did not work; it then goes on with files on this machine."""
    for one in caught:
        text = str(one.message)
        if "could not" in text or "failed" in text:
            raise TrackerError(f"trackio: {text.splitlines()[0]}")


def _open(delivery: Delivery, caught: list[warnings.WarningMessage]) -> "Run":
    """The run, new or resumed, once Trackio has answered how far it has it."""
    import trackio

    server = delivery.tracker.server or ""
    run = trackio.init(
        project=delivery.tracker.project,
        name=delivery.run,
        group=delivery.study or None,
        config=delivery.config,
        resume="allow",
        space_id=None if "://" in server else server or None,
        server_url=server if "://" in server else None,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    _check(caught)
    return run


def _events(delivery: Delivery) -> int:
    """How many of the run's events are in the files as alerts."""
    import trackio

    try:
        return len(trackio.Api().alerts(delivery.tracker.project, run=delivery.run))
    except ValueError:  # no such project yet
        return 0
