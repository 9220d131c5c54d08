"""Every kind of document and its JSON Schema; `python -m specs.document.schemas` writes `specs/schema/<kind>.json`.

The schemas are generated from the types and checked in; editors read them, and documents are validated by them first.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from specs.document.base import Spec
from specs.document.write import write_text

FOLDER = Path(__file__).parents[1] / "schema"
_WHERE = {
    "audit": ("specs.record", "Audit"),
    "budget": ("specs.budget", "Budget"),
    "cluster": ("specs.cluster", "Cluster"),
    "corpus": ("specs.data", "Corpus"),
    "data_jobs": ("specs.data_jobs", "DataJobs"),
    "exclusion": ("specs.ledger", "Exclusion"),
    "family": ("specs.law", "Family"),
    "law": ("specs.law", "PublishedLaw"),
    "ledger": ("specs.record", "LedgerRecord"),
    "mix": ("specs.data", "MixCorpus"),
    "order": ("specs.record", "Order"),
    "plan": ("specs.plan", "Plan"),
    "queued": ("specs.slurm_submission", "Queued"),
    "run": ("specs.run", "RunSpec"),
    "study": ("specs.slurm_submission", "StudyState"),
    "submission": ("specs.slurm_submission", "Submission"),
    "table_run": ("specs.ledger", "TableRunRecord"),
}
"""Module and name of each kind's type; the module is imported only when it is needed."""


def kinds() -> list[str]:
    """Every kind of document."""
    return list(_WHERE)


def type_of(kind: str) -> type[Spec]:
    """The type of a kind of document; KeyError for no kind."""
    module, name = _WHERE[kind]
    found: type[Spec] = getattr(importlib.import_module(module), name)
    return found


def schema_path(kind: str) -> Path:
    """Where the schema of a kind is checked in."""
    return FOLDER / f"{kind}.json"


def generate(kind: str) -> str:
    """The text of a kind's schema, the same for the same types. A document always says its kind."""
    schema: dict[str, Any] = type_of(kind).model_json_schema()
    schema["required"] = sorted({"kind", *schema.get("required", [])}, key=list(schema["properties"]).index)
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"isoplan {kind}"}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema."""
    for kind in kinds():
        write_text(schema_path(kind), generate(kind))
        print(schema_path(kind))


if __name__ == "__main__":
    main()
