"""Stands in for mlflow's client on a database: a JSON file. Nothing that is sent twice is noticed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class MlflowClient:
    """A client of the database at this URI."""

    def __init__(self, tracking_uri: str) -> None:
        self._path = Path(tracking_uri.removeprefix("sqlite:///"))

    def get_experiment_by_name(self, name: str) -> Any:
        """The experiment; None for no such one."""
        return SimpleNamespace(experiment_id=name) if self._runs().get("experiment") == name else None

    def create_experiment(self, name: str, artifact_location: str | None) -> None:
        """Make it."""
        self._write({"experiment": name})

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        """The runs with the tag."""
        content = self._runs()
        return [_run(content)] if f"'{content.get('tags', {}).get('isoplan.run')}'" in filter_string else []

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        """A new run."""
        content = self._runs() | {"tags": tags, "name": run_name, "params": {}, "points": []}
        self._write(content)
        return _run(content)

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        """Add to the run."""
        assert len(metrics) <= 1000
        content = self._runs()
        content["points"] += [[one.step, {one.key: one.value}] for one in metrics]
        content["params"] |= {one.key: one.value for one in params}
        content["tags"] |= {one.key: one.value for one in tags}
        self._write(content)

    def set_terminated(self, run: str, status: str) -> None:
        """Note the status."""
        self._write(self._runs() | {"status": status})

    def _runs(self) -> dict[str, Any]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def _write(self, content: dict[str, Any]) -> None:
        self._path.write_text(json.dumps(content))


def _run(content: dict[str, Any]) -> Any:
    metrics = {name: value for _, values in content["points"] for name, value in values.items()}
    return SimpleNamespace(info=SimpleNamespace(run_id="1"), data=SimpleNamespace(metrics=metrics))
