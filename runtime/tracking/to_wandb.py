"""To Weights & Biases. The run's fingerprint is its id; offline, each delivery is a folder that `wandb sync` sends on.

W&B takes no step that is not past its last one. Online it says which that is; offline it cannot be asked.
"""

from runtime.tracking.delivery import Delivery


def send(delivery: Delivery) -> str | None:
    """Send it; offline, the name of the folder that was written aside."""
    import wandb

    online = delivery.tracker.server is not None
    aside = delivery.files / ".part" / delivery.run
    aside.mkdir(parents=True, exist_ok=True)
    entity, _, project = delivery.tracker.project.rpartition("/")
    settings = {"base_url": delivery.tracker.server} if online else {}
    run = wandb.init(
        entity=entity or None,
        project=project,
        id=delivery.run,
        name=delivery.title,
        group=delivery.study or None,
        tags=delivery.kinds,
        config=None if delivery.sent else delivery.config,
        resume="allow",
        mode="online" if online else "offline",
        dir=str(aside),
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # of the machine that sends, which is not the one that trains
            x_disable_meta=True,
            **settings,
        ),
    )
    next_step = run.step  # of a run that the server knows; 0 of a new one
    for point in delivery.points:
        if point.step >= next_step:
            run.log(point.values, step=point.step)
    run.summary["events"] = delivery.event_text
    run.finish()  # returns when everything is sent, or in the file
    if online:
        return None
    [folder] = (path for path in (aside / "wandb").glob("offline-run-*") if not path.is_symlink())
    others = len(list((delivery.files / "wandb").glob(f"{folder.name}*")))
    return f"{folder.name}-{others}" if others else folder.name
