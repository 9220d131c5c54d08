"""The planner's inputs: the budget with the path of its file, and every document that it names."""

from dataclasses import dataclass
from pathlib import Path

from planner.design.budget_table import load_table, table_field
from specs.budget import Budget, Published
from specs.cluster import Cluster
from specs.data import Corpus, DeclaredText
from specs.document.files import DocumentError, from_catalog, is_file, load, locate
from specs.law import Allocation, Family, Hyper, PublishedLaw
from specs.run_table.table import RunTable


@dataclass(frozen=True)
class PlanInputs:
    """A budget and all that it names."""

    budget: Budget
    path: Path
    """The budget's file."""
    out: Path
    """Folder of the plan."""
    law: PublishedLaw
    """The law of the plan, or the prior of its pilots or of its table."""
    loss_law: PublishedLaw | None
    """Law for the loss; None where neither the budget nor `law` gives one."""
    hyper_law: PublishedLaw
    """Law for learning rate and batch size."""
    family: Family
    """Shapes, with the budget's aspect ratio."""
    cluster: Cluster
    corpus: Corpus | None
    """The built corpus; None where data.text has source: declared."""
    table: RunTable | None
    """The table of runs that the budget names; None where it names none."""

    @property
    def ledger(self) -> Path:
        """The ledger beside the budget."""
        return self.path.parent / self.budget.ledger

    @property
    def vocab(self) -> int:
        """Number of different tokens, before padding."""
        return self.budget.data.vocab

    @property
    def unique_tokens(self) -> int:
        """Training tokens that exist: the built corpus's, or the declared ones."""
        if self.corpus is not None:
            return self.corpus.train.tokens
        assert isinstance(self.budget.data.text, DeclaredText)  # other text has a corpus
        return self.budget.data.text.unique

    @property
    def bytes_per_token(self) -> float | None:
        """Of the corpus's held-out text; of a declared text, those that a table of the same text has."""
        if self.corpus is not None:
            return self.corpus.bytes_per_token
        _, named = table_field(self.budget)
        return named.bytes_per_token if named is not None and named.same_text else None

    @property
    def text(self) -> str:
        """Description of the text, to compare with the text that a law was fitted on."""
        declared = self.budget.data.text
        return declared.describe if isinstance(declared, DeclaredText) else "your own files"

    @property
    def hyper(self) -> Hyper:
        """Learning rate and batch size against size, data and compute."""
        if self.hyper_law.hyper is None:
            what = f"the law {self.hyper_law.name} gives no learning rate and batch size"
            field = "evidence.hyper" if isinstance(self.budget.evidence, Published) else "evidence.prior"
            raise self.refuse("evidence", what, f"set {field} to a law that does, e.g. deepseek or step-law")
        return self.hyper_law.hyper

    @property
    def allocation(self) -> Allocation | None:
        """The published split of compute; None where the law has none."""
        return self.law.allocation

    def refuse(self, field: str, what: str, write: str) -> DocumentError:
        """An error that points at a field of the budget: what is wrong, and what to write."""
        return locate(self.path, field, what, write)


def load_inputs(budget: Budget, path: Path, out: Path, corpora: Path) -> PlanInputs:
    """Load all that a budget names; DocumentError where something is missing.

    `path` is the budget's file, `out` the plan's folder, `corpora` the folder of built corpora.
    """
    evidence = budget.evidence
    published = isinstance(evidence, Published)
    law = from_catalog(
        PublishedLaw, evidence.law if isinstance(evidence, Published) else evidence.prior, path
    )
    names = (evidence.loss, evidence.hyper) if isinstance(evidence, Published) else (None, None)
    loss, hyper = (None if name is None else from_catalog(PublishedLaw, name, path) for name in names)
    return PlanInputs(
        budget=budget,
        path=path,
        out=out,
        law=law,
        loss_law=loss or (law if published and law.loss is not None else None),
        hyper_law=hyper or law,
        family=_family(budget, path),
        cluster=_cluster(budget, path),
        corpus=_corpus(budget, path, corpora),
        table=load_table(budget, path),
    )


def _family(budget: Budget, path: Path) -> Family:
    """The family from the catalog; the budget's aspect ratio, where it gives one, replaces the family's depths."""
    family, aspect = from_catalog(Family, budget.family, path), budget.aspect
    if aspect is None:
        return family
    return family.model_copy(update={"depths": ((aspect, 1), (1000 * aspect, 1000))})


def _cluster(budget: Budget, path: Path) -> Cluster:
    """The cluster from the catalog, or from a file beside the budget."""
    if not is_file(budget.cluster):
        return from_catalog(Cluster, budget.cluster, path)
    cluster = path.parent / budget.cluster
    if not cluster.exists():
        write = (
            "give the file's path relative to this budget's folder, or the name of a cluster in the catalog"
        )
        raise locate(path, "cluster", f"the file {cluster} does not exist", write)
    return load(cluster, Cluster)


def _corpus(budget: Budget, path: Path, corpora: Path) -> Corpus | None:
    if isinstance(budget.data.text, DeclaredText):
        return None
    manifest = corpora / budget.data.fingerprint() / "manifest.json"
    if not manifest.exists():
        what = f"the corpus is not built yet ({manifest} does not exist)"
        raise locate(path, "data", what, f"run: isoplan data {path}")
    return load(manifest, Corpus)
