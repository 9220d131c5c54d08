"""To Trackio. The run's fingerprint is its name, by which Trackio resumes it.

Trackio never raises: what it could not write it warns of. So its last step is read back after each part.
"""

import os
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
    os.environ["TRACKIO_DIR"] = str(delivery.files / "trackio")  # read when it is imported
    if not online:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
            os.environ.pop(name, None)
        os.environ["HF_HUB_OFFLINE"] = "1"  # or it asks who the user is
    import trackio

    run = _open(delivery)
    next_step = run._next_step
    points = (point for point in delivery.points if point.step >= next_step)
    while part := list(islice(points, _PART_POINTS)):
        for point in part:
            run.log(point.values, step=point.step)
        trackio.finish()
        run = _open(delivery)
        if run._next_step != part[-1].step + 1:
            raise TrackerError(f"trackio has {delivery.title} up to step {run._next_step - 1} only")
    sent = delivery.sent_events if online else _events(delivery)
    for event in delivery.events[sent:]:
        quiet = event.kind in ("resumed", "finished")
        level = trackio.AlertLevel.INFO if quiet else trackio.AlertLevel.WARN
        run.alert(event.kind, event.text, level, event.step)
    trackio.finish()


def _open(delivery: Delivery) -> "Run":
    import trackio

    server = delivery.tracker.server or ""
    return trackio.init(
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


def _events(delivery: Delivery) -> int:
    """How many of the run's events are in the files as alerts."""
    import trackio

    try:
        return len(trackio.Api().alerts(delivery.tracker.project, run=delivery.run))
    except ValueError:  # no such project yet
        return 0
