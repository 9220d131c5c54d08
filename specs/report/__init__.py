"""The report: a plan, and its audit where there is one, as one self-contained page that opens offline.

`plan` and `audit` draw the same page from the same documents, so it lives with the documents. Nothing is computed here
but units and lines for the eye: a figure shows what the plan and the records hold. The page of `isoplan fit` is made of
the same parts (`table_fit`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # plans and records take .1 s to import, and the page of a fit needs neither
    from specs.plan import Plan
    from specs.record import Audit


def render(plan: "Plan", audit: "Audit | None", earlier: "Sequence[tuple[Plan, Audit]]" = ()) -> str:
    """The page as HTML; the same documents give the same bytes.

    `earlier` are the plans that led to this one, with their audits: their runs join the tables.
    """
    from specs.report.context import Case
    from specs.report.page import page

    return page(Case(plan, audit, tuple(earlier)))
