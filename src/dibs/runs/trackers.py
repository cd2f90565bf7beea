"""TensorBoard, W&B and other trackers, through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dibs.config import Config
from dibs.config.changes import flat_keys
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
            self._used = _opened(config, folder, earlier or {}, first)
            self.run_ids = {each.name: _run_id(each) for each in self._used}
        except Exception as error:  # whatever a tracker's package raises
            raise InputError(
                f"tracking.trackers: {', '.join(names)} cannot be opened: {one_line(error)}"
            ) from error

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers among a step's metrics."""
        numbers = {key: v for key, v in metrics.items() if isinstance(v, int | float)}
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


def _opened(config: Config, folder: Path, known: Mapping[str, str], first: int) -> list[Any]:
    """The configured trackers of accelerate, each in its earlier run where that is known."""
    from accelerate import Accelerator

    names, place = config.tracking.trackers, folder / "trackers"
    place.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=list(names), project_dir=str(place))
    accelerator.init_trackers(
        config.tracking.project,
        config={
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in flat_keys(config.model_dump(mode="json")).items()
        },
        init_kwargs={
            name: {
                **({"dir": str(place)} if name == "wandb" else {}),  # else where the user is
                **(_GO_ON[name](known[name], first) if name in known and name in _GO_ON else {}),
            }
            for name in names
        },
    )
    return list(accelerator.trackers)


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
    run = getattr(tracker, "run", None)  # of wandb; trackio's has a name only
    return str(getattr(run, "id", None) or getattr(run, "name", None) or tracker.name)
