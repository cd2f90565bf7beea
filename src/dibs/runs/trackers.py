"""TensorBoard, W&B and other trackers, through accelerate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dibs.config import Config
from dibs.config.changes import flat_keys
from dibs.config.secrets import without_secrets
from dibs.files import one_line
from dibs.types import InputError


def check_trackers(names: tuple[str, ...]) -> None:
    """InputError for a tracker that accelerate does not know or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(kind) for kind in LOGGER_TYPE_TO_CLASS}
    available = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise InputError(
                f"tracking.trackers: unknown tracker {name!r}; known: {', '.join(sorted(known))}"
            )
        if name not in available:
            raise InputError(f"tracking.trackers: {name} is not installed; pip install {name}")


_GO_ON: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "tensorboard": lambda _, step: {"purge_step": step},
    "wandb": lambda run_id, _: {"id": run_id, "resume": "allow"},
    "trackio": lambda name, _: {"name": name, "resume": "allow"},
    "mlflow": lambda run_id, _: {"run_id": run_id},
}
"""What opens a tracker's run again, by the name of the run and the first step still to come."""


class Trackers:
    """Logs numbers to every configured tracker; does nothing when there is none.

    A tracker that fails during the run is dropped with a warning: the run, which has cost more, goes on.

    A resumed run goes on in the trackers' own runs. ``earlier``: their :attr:`run_ids`; a tracker
    without one starts another run. ``first``: the step that the run goes on with. ``warn``: is given
    one line for each tracker that is dropped.

    Raises InputError where a tracker cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        earlier: Mapping[str, str] | None = None,
        first: int = 0,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._warn = warn
        self._used: list[Any] = []
        self.run_ids: dict[str, str] = {}
        """What each tracker calls this run, by the tracker's name."""
        names = config.tracking.trackers
        if not names:
            return
        try:
            self._used = _opened(config, folder, earlier or {}, first, warn)
            self.run_ids = {each.name: _run_id(each) for each in self._used}
        except Exception as error:  # whatever a tracker's package raises
            raise InputError(
                f"tracking.trackers: {', '.join(names)} cannot be opened: {one_line(error)}"
            ) from error

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers among a step's metrics; the step itself is their axis."""
        numbers = {
            key: v for key, v in metrics.items() if isinstance(v, int | float) and key != "step"
        }
        self._each(lambda tracker: tracker.log(numbers, step=metrics["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Any], None]) -> None:
        """Do this with every tracker that is still used."""
        for tracker in list(self._used):
            try:
                act(tracker)
            except Exception as error:  # whatever a tracker's package raises
                self._used.remove(tracker)
                self._warn(
                    f"tracker {tracker.name} failed ({one_line(error)}); the run goes on without it"
                )


def _opened(
    config: Config,
    folder: Path,
    known: Mapping[str, str],
    first: int,
    warn: Callable[[str], None],
) -> list[Any]:
    """The configured trackers of accelerate, each in its earlier run where that is known."""
    from accelerate import Accelerator

    names, place = config.tracking.trackers, (folder / "trackers").absolute()
    place.mkdir(exist_ok=True)
    if "trackio" in names:
        _place_trackio(place, warn)
    if "mlflow" in names:
        _place_mlflow(place)
    accelerator = Accelerator(cpu=True, log_with=list(names), project_dir=str(place))
    accelerator.init_trackers(
        config.tracking.project,
        config={
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in flat_keys(without_secrets(config.model_dump(mode="json"))).items()
        },
        init_kwargs={
            name: {
                **_described(name, config, place),
                **(_GO_ON[name](known[name], first) if name in known and name in _GO_ON else {}),
            }
            for name in names
        },
    )
    return list(accelerator.trackers)


def _described(name: str, config: Config, place: Path) -> dict[str, Any]:
    """What a tracker is given of the run besides numbers, in its own words."""
    own = config.tracking
    run_name = own.run_name or config.output_dir.absolute().name
    if name == "wandb":
        given = {"dir": str(place), "group": own.group, "tags": own.tags, "notes": own.notes}
    elif name == "trackio":
        given = {"group": own.group}
    elif name == "mlflow":
        groups = {} if own.group is None else {"group": own.group}
        tags = dict.fromkeys(own.tags, "true") | groups
        place_and_name = {"run_name": run_name, "logging_dir": str(place / "mlflow-artifacts")}
        return place_and_name | {"tags": tags or None, "description": own.notes}
    else:
        return {}
    return {"name": run_name} | {key: value for key, value in given.items() if value}


def _place_trackio(place: Path, warn: Callable[[str], None]) -> None:
    """Give trackio a folder inside ``place``, unless the user has named another.

    trackio reads the variable when it is imported, once a process.
    """
    own = str(place / "trackio")
    if "TRACKIO_DIR" not in os.environ and "trackio" not in sys.modules:
        os.environ["TRACKIO_DIR"] = own
        try:
            import_module("trackio")
        finally:
            del os.environ["TRACKIO_DIR"]  # it is of this run, and children may make others
    elif "TRACKIO_DIR" not in os.environ:
        taken = getattr(sys.modules.get("trackio.utils"), "TRACKIO_DIR", "a folder of its own")
        if str(taken) != own:
            warn(f"trackio was imported before this run, so it writes to {taken}")


def _place_mlflow(place: Path) -> None:
    """Give MLflow a database inside ``place``, unless the user has named a server or another."""
    if "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")


class NoTrackers:
    """Logs nothing: for processes that leave the trackers to another."""

    run_ids: Mapping[str, str] = {}

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _run_id(tracker: Any) -> str:
    if tracker.name == "mlflow":
        return str(tracker.active_run.info.run_id)
    run = getattr(tracker, "run", None)
    known = getattr(run, "name" if tracker.name == "trackio" else "id", None)
    return str(known or tracker.name)
