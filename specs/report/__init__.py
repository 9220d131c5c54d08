"""The report: a plan, and its audit where there is one, as one self-contained page that opens offline.

`plan` and `audit` draw the same page from the same documents, so it lives with the documents. Nothing is computed here
but units: a figure shows what the plan and the records hold.
"""

from specs.plan import Plan
from specs.record import Audit
from specs.report.page import page


def render(plan: Plan, audit: Audit | None) -> str:
    """The page as HTML; the same documents give the same bytes."""
    return page(plan, audit)
