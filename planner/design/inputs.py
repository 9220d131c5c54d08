"""What lies on the planner's desk: the budget with where it came from, and every document that it names."""

from dataclasses import dataclass
from pathlib import Path

from specs.budget import Budget, Published
from specs.cluster import Cluster
from specs.data import Corpus, DeclaredText
from specs.document.files import DocumentError, from_catalog, is_file, load, locate
from specs.law import Allocation, Family, Hyper, PublishedLaw


@dataclass(frozen=True)
class PlanInputs:
    """A budget and all that it names."""

    budget: Budget
    path: Path
    """The budget's file."""
    out: Path
    """Folder of the plan."""
    law: PublishedLaw
    """The law of the plan, or the prior of its pilots."""
    loss_law: PublishedLaw | None
    """Law for the loss; None where the budget names none and `law` has none."""
    hyper_law: PublishedLaw
    """Law for learning rate and batch size."""
    family: Family
    """Shapes, with the budget's aspect ratio."""
    cluster: Cluster
    corpus: Corpus | None
    """The built corpus; None where the text is only declared."""

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
        assert isinstance(self.budget.data.text, DeclaredText)  # only declared text has no corpus
        return self.budget.data.text.unique

    @property
    def text(self) -> str:
        """What the text is, to compare with the text of a law."""
        declared = self.budget.data.text
        return declared.describe if isinstance(declared, DeclaredText) else "your own files"

    @property
    def hyper(self) -> Hyper:
        """Learning rate and batch size against size, data and compute."""
        if self.hyper_law.hyper is None:
            what = f"the law {self.hyper_law.name} has no learning rate and batch size"
            raise self.refuse("evidence", what, "name one that has as hyper, like deepseek or step-law")
        return self.hyper_law.hyper

    @property
    def allocation(self) -> Allocation | None:
        """The published split of compute; None where the law has none."""
        return self.law.allocation

    def refuse(self, field: str, what: str, write: str) -> DocumentError:
        """A refusal that points at a field of the budget."""
        return locate(self.path, field, what, write)


def load_inputs(path: Path, out: Path, corpora: Path) -> PlanInputs:
    """Load a budget and all that it names; DocumentError where something is missing."""
    budget = load(path, Budget)
    evidence = budget.evidence
    published = isinstance(evidence, Published)
    law = from_catalog(
        PublishedLaw, evidence.law if isinstance(evidence, Published) else evidence.prior, path
    )
    named = (evidence.loss, evidence.hyper) if isinstance(evidence, Published) else (None, None)
    loss, hyper = (None if name is None else from_catalog(PublishedLaw, name, path) for name in named)
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
    )


def _family(budget: Budget, path: Path) -> Family:
    """The family from the catalog; an aspect ratio of the budget's own is a line through its depths."""
    family, aspect = from_catalog(Family, budget.family, path), budget.aspect
    if aspect is None:
        return family
    return family.model_copy(update={"depths": ((aspect, 1), (1000 * aspect, 1000))})


def _cluster(budget: Budget, path: Path) -> Cluster:
    """The cluster from the catalog, or from a file beside the budget."""
    if not is_file(budget.cluster):
        return from_catalog(Cluster, budget.cluster, path)
    beside = path.parent / budget.cluster
    if not beside.exists():
        write = "give its path from this budget's folder, or the name of a cluster in the catalog"
        raise locate(path, "cluster", f"there is no file {beside}", write)
    return load(beside, Cluster)


def _corpus(budget: Budget, path: Path, corpora: Path) -> Corpus | None:
    if isinstance(budget.data.text, DeclaredText):
        return None
    manifest = corpora / budget.data.fingerprint() / "manifest.json"
    if not manifest.exists():
        what = f"the corpus is not built ({manifest} is missing)"
        raise locate(path, "data", what, f"run: isoplan data {path}")
    return load(manifest, Corpus)
