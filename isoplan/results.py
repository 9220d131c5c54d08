"""What the library gives: documents of the commands, frozen, that show themselves at a prompt and in a notebook."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import PrivateAttr
from rich.console import Console

import specs.plan
import specs.record
from isoplan.arguments import in_arguments
from planner.scaling.model_averaging import Mixture, fit_mixture
from planner.table_fit import terminal
from planner.table_fit.analysis import forecast_at, table_points
from planner.table_fit.targets import parse_target, target_text
from planner.tables import show as show_plan
from runtime.audit.verdict import show as show_audit
from specs.document.base import Spec
from specs.document.write import write_text
from specs.exit_codes import InputError
from specs.report.run_figures import TrainingCurve
from specs.report.table_fit.page import render_table_fit
from specs.run_table.table import RunTable
from specs.table_fit import TableFit, TableForecast

WIDTH = 110
"""Characters of a line."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Beside(Generic[T]):
    """What a result needs besides its content, by which alone results are compared."""

    value: T = field(compare=False)


class _Shown:
    """A result that shows itself as its command does, in a terminal and in a notebook."""

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=False)
        with console.capture() as captured:
            self._draw(console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False, record=True)
        self._draw(console)
        return console.export_html(
            inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>'
        )

    def _draw(self, console: Console) -> None:
        raise NotImplementedError


class Forecast(_Shown, TableForecast):
    """The final loss of one run with its 50 and 95 % bands (`loss`), in nats per token."""

    _fit: _Beside[TableFit] = PrivateAttr()

    @classmethod
    def of(cls, forecast: TableForecast, fit: TableFit) -> Self:
        """A forecast by this fit."""
        found: Self = _as(cls, forecast)
        found._fit = _Beside(fit.model_copy(update={"forecasts": (forecast,)}))
        return found

    def _draw(self, console: Console) -> None:
        terminal.show_forecasts(self._fit.value, console)


class Fit(_Shown, TableFit):
    """What a table of runs says: isoFLOP profiles, the law (`members`), best splits, forecasts, backtests, flags."""

    _table: _Beside[RunTable] = PrivateAttr()
    _mixture: _Beside[Mixture | None] = PrivateAttr(default=_Beside(None))
    _curves: _Beside[Sequence[TrainingCurve]] = PrivateAttr()

    @classmethod
    def of(cls, fit: TableFit, table: RunTable, curves: Sequence[TrainingCurve] = ()) -> Self:
        """The fit of a table, with the curves of its runs that its report draws."""
        found: Self = _as(cls, fit)
        found._table = _Beside(table)
        found._curves = _Beside(curves)
        return found

    def forecast(self, at: str) -> Forecast:
        """The final loss at `1e22 FLOP`, split in the best way, or of a run of `7B params 2T tokens`.

        InputError where the target cannot be read, or where the table's runs give no law.
        """
        with in_arguments():
            target = parse_target(at, self.table.size_kind)
        if self.no_forecast is not None:
            raise InputError(f"{self.table.path}: there is no law to forecast with: {self.no_forecast}")
        asked_before = target_text(target, self.table.size_kind)
        for one in self.forecasts:
            if one.target == asked_before:
                return Forecast.of(one, self)
        table, mixture = self._table.value, self._mixture.value
        if mixture is None:  # once more, since a document holds no draws
            mixture = fit_mixture(table_points(table))
            self._mixture = _Beside(mixture)
        return Forecast.of(forecast_at(mixture, target, table), self)

    def write_report(self, path: str | PathLike[str]) -> None:
        """Write the report of `isoplan fit`: one HTML page that opens offline."""
        write_text(Path(path), render_table_fit(self, self._curves.value))

    def _draw(self, console: Console) -> None:
        terminal.show(self, None, console)


class Plan(_Shown, specs.plan.Plan):
    """A sealed plan: its runs with nothing left to derive, and the forecast of the target's loss."""

    _path: _Beside[Path] = PrivateAttr()

    @classmethod
    def of(cls, plan: specs.plan.Plan, path: Path) -> Self:
        """The plan of this file."""
        found: Self = _as(cls, plan)
        found._path = _Beside(path)
        return found

    @property
    def path(self) -> Path:
        """Its file; `report.html` is beside it."""
        return self._path.value

    def _draw(self, console: Console) -> None:
        show_plan(self, self.path, console)


class Audit(_Shown, specs.record.Audit):
    """The verdict on a plan, with the checks of its runs' records and likely causes of a miss."""

    _plan: _Beside[Plan] = PrivateAttr()

    @classmethod
    def of(cls, audit: specs.record.Audit, plan: Plan) -> Self:
        """The audit of this plan."""
        found: Self = _as(cls, audit)
        found._plan = _Beside(plan)
        return found

    def _draw(self, console: Console) -> None:
        show_audit(self, self._plan.value, self._plan.value.path, console)


def _as(kind: type[Spec], document: Spec) -> Any:
    """The document's content as one of the classes above; it was validated when it was made."""
    return kind.model_construct(**{name: getattr(document, name) for name in type(document).model_fields})
