"""What is read of a row of results.json, apart from its comparison, which is made again."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from dibs.config.wording import worded

_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """Keys beside those that are read are let be."""

    model_config = ConfigDict(strict=True)


class _Target(_Part):
    score: Literal["value", "accuracy", "pass_at_k"]
    share: _Number | None
    level: _Number | None


class _Row(_Part):
    task: str
    algorithm: str
    arm: str
    reference: str
    learning_rate: _Number | None
    learning_rate_at_edge: bool
    optimizer_updates: _Number | None
    value_after: _Number | None
    value_after_seeds: list[_Number] | None
    seeds: list[int]
    targets: list[_Target]
    failures: dict[str, str]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        with_it = (self.learning_rate, self.optimizer_updates, self.value_after_seeds)
        if self.value_after is not None and None in with_it:
            raise ValueError(
                "value_after has no learning_rate, optimizer_updates or value_after_seeds beside it"
            )
        return self


_ROWS = TypeAdapter(list[_Row])


def whole_rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of results.json. Raises ValueError where a value that is read of one is wrong."""
    try:
        _ROWS.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        row, *keys = (*first["loc"], "")
        if row == "":
            raise ValueError("results.json is no list of rows") from None
        place = ".".join(str(key) for key in keys if key != "")
        raise ValueError(
            f"row {int(row) + 1}: {place}{': ' * bool(place)}{worded(first)}"
        ) from None
    rows: list[dict[str, Any]] = table
    return rows
