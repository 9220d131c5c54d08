"""Experiment trackers: where the curves of runs are sent, and under which project."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from specs.document.base import Spec

TrackerName = Literal["wandb", "mlflow", "trackio"]
"""Weights & Biases, MLflow, Trackio."""

Project = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,63}(/[A-Za-z0-9][A-Za-z0-9_. -]{0,63})?$"),
    Field(examples=["isoplan"]),
]
"""Name of a project in a tracker."""

Server = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]+$"), Field(examples=["https://host:5000"])]
"""Address of a tracker's server."""


class Tracker(Spec):
    """Where the curves of runs are sent: files of this workspace, unless a server is named."""

    to: TrackerName
    """The tracker: `wandb`, `mlflow` or `trackio`; each is an extra of the same name."""
    project: Project = "isoplan"
    """Project of wandb and Trackio, experiment of MLflow. `team/project` is a project of a team on W&B."""
    server: Server | None = None
    """URL of the server; of Trackio also a Space, `user/space`. Null writes files under `trackers/`, and nothing is
    sent over the network."""

    @model_validator(mode="after")
    def _addressable(self) -> Self:
        if "/" in self.project and self.to != "wandb":
            raise ValueError(
                f"project {self.project!r} has a team, which only wandb knows; write the part after /"
            )
        if self.server is None or re.match("https?://.", self.server):
            return self
        if self.to == "trackio" and re.fullmatch(r"[\w.-]+/[\w.-]+", self.server):
            return self
        space = ", or a Space, user/space" if self.to == "trackio" else ""
        raise ValueError(f"server {self.server!r} is no address of {self.to}; write https://HOST{space}")

    @property
    def shown_while_running(self) -> bool:
        """Whether what is sent can be looked at at once: offline files of W&B cannot, before `wandb sync`."""
        return self.to != "wandb" or self.server is not None
