"""The planner's inputs: the budget with the path of its file, and every document that it names."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from planner.design.budget_table import load_table, table_field
from planner.design.mix import PlannedMix, planned_mix
from planner.scaling.data_constrained import UniqueTokens
from specs.budget import Budget, Published
from specs.cluster import Cluster
from specs.curate import CuratedText
from specs.data import Bbpe, Bytes, CorpusRef, DataSpec, DeclaredText, MixText, TokenIds
from specs.data_inputs import InputFileError, check_token_count, tokenizer_file
from specs.data_jobs import jobs_path
from specs.document.files import DocumentError, from_catalog, is_file, load, locate
from specs.document_lengths import mean_attended_tokens, weighted_mean
from specs.law import Allocation, Family, Hyper, PublishedLaw
from specs.plan import SourceText
from specs.run_table.table import RunTable
from specs.sources import Sources, declared_ref, find_sources, is_declared
from specs.tokenizer_file import token_count


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
    sources: Sources | None
    """The built corpora; None where the text is only declared."""
    mix: PlannedMix | None
    """Shares of the sources; None where the text is no mix."""
    table: RunTable | None
    """The table of runs that the budget names; None where it names none."""
    vocab: int
    """Number of token ids: the built corpus's, or those that its tokenizer is declared to have."""

    @property
    def ledger(self) -> Path:
        """The ledger beside the budget."""
        return self.path.parent / self.budget.ledger

    @property
    def rows(self) -> int:
        """Rows of a model's vocabulary, those in reserve included, before padding."""
        return max(self.vocab, self.budget.data.reserved_rows)

    @property
    def data(self) -> CorpusRef:
        """The data of the plan's runs."""
        return declared_ref(self.budget.data) if self.sources is None else self.sources.ref

    @property
    def unique_tokens(self) -> int:
        """Training tokens that exist, of all sources: those of built corpora, or the declared ones."""
        return sum(unique_by_source(self.budget.data, self.sources).values())

    @property
    def unique_text(self) -> UniqueTokens:
        """The same, as losses discount repeats: those of a mix by source."""
        return float(self.unique_tokens) if self.mix is None else self.mix.text

    @property
    def bytes_per_token(self) -> float | None:
        """Of the held-out text, that of a mix by its shares of the loss; of a declared text, those that a table of the
        same text has."""
        if self.sources is not None:
            return self._held_out_bytes(self.sources)
        _, named = table_field(self.budget)
        return named.bytes_per_token if named is not None and named.same_text else None

    @property
    def source_texts(self) -> dict[str, SourceText]:
        """The sources of a mix; none where the text is no mix."""
        if self.mix is None:
            return {}
        corpora = {} if self.sources is None else self.sources.corpora
        return {
            name: SourceText(
                unique_tokens=tokens,
                bytes_per_token=corpora[name].bytes_per_token if name in corpora else None,
            )
            for name, tokens in self.mix.unique_tokens.items()
        }

    @property
    def curation(self) -> tuple[CuratedText, ...]:
        """What the steps of `curate` left of each text that has any."""
        corpora = {} if self.sources is None else self.sources.corpora
        readings = {name: one.reading for name, one in corpora.items() if one.reading is not None}
        return tuple(
            CuratedText(source=name, steps=one.curation) for name, one in readings.items() if one.curation
        )

    def _held_out_bytes(self, sources: Sources) -> float | None:
        by_source = {name: corpus.bytes_per_token for name, corpus in sources.corpora.items()}
        if self.mix is None:
            return by_source[""]
        known = {name: one for name, one in by_source.items() if one is not None}
        if len(known) < len(by_source):
            return None
        return sum(self.mix.evaluation_share(name) * one for name, one in known.items())

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
    sources = load_sources(budget, path, corpora)
    family, mix = _family(budget, path), None
    if isinstance(budget.data.text, MixText):
        unique = unique_by_source(budget.data, sources)
        mix = planned_mix(budget.data.text, unique, family.schedule, partial(locate, path))
    return PlanInputs(
        budget=budget,
        path=path,
        out=out,
        law=law,
        loss_law=loss or (law if published and law.loss is not None else None),
        hyper_law=hyper or law,
        family=_on_text(family, budget, path, sources, mix),
        cluster=_cluster(budget, path),
        sources=sources,
        mix=mix,
        table=load_table(budget, path),
        vocab=declared_vocab(budget.data, path) if sources is None else sources.any.vocab,
    )


def _family(budget: Budget, path: Path) -> Family:
    """The family from the catalog, with the budget's aspect ratio and schedule where it gives them."""
    own: dict[str, object] = {}
    if budget.schedule is not None:
        own["schedule"] = budget.schedule
    if budget.aspect is not None:
        own["depths"] = ((budget.aspect, 1), (1000 * budget.aspect, 1000))
    return from_catalog(Family, budget.family, path).model_copy(update=own)


def _on_text(
    family: Family, budget: Budget, path: Path, sources: Sources | None, mix: PlannedMix | None
) -> Family:
    """The family; where documents are masked, with the tokens that attention sees of this text."""
    if budget.documents == "joined":
        return family
    if sources is None:
        what = "how long the documents are is known of built corpora only, and data.text has source: declared"
        raise locate(path, "documents", what, "write documents: joined, or give the text")
    unknown = next((name for name, one in sources.corpora.items() if not one.document_lengths), None)
    if unknown is not None:
        what = f"no token ends the documents of {unknown or 'this text'}, so that they cannot be told apart"
        raise locate(
            path, "documents", what, "write documents: joined, or name data.tokenizer.end_of_document"
        )
    shares = {"": 1.0} if mix is None else mix.shares
    attended = [
        (shares[name], mean_attended_tokens(one.document_lengths, family.context))
        for name, one in sources.corpora.items()
    ]
    return family.model_copy(update={"mean_attended_tokens": weighted_mean(attended)})


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


def load_sources(budget: Budget, path: Path, corpora: Path) -> Sources | None:
    """The corpora of the budget's text as its files are now; DocumentError where one is not built. None where the text
    is only declared."""
    if is_declared(budget.data):
        return None
    try:
        found = find_sources(budget.data, path.parent, corpora)
    except InputFileError as error:
        raise locate(path, f"data.{error.field}", f"{error.path}: {error.what}", error.write) from None
    if isinstance(found, str) and jobs_path(budget.data, path.parent, corpora).exists():
        raise locate(path, "data", f"{found}: SLURM jobs build it", f"see: isoplan status {path} -f")
    if isinstance(found, str):
        raise locate(path, "data", found, f"run: isoplan data {path}")
    return found


def unique_by_source(data: DataSpec, sources: Sources | None) -> dict[str, int]:
    """Training tokens of each source; of a text that is no mix under no name."""
    if sources is not None:
        return {name: corpus.train.tokens for name, corpus in sources.corpora.items()}
    texts = {name: part.text for name, part in data.parts().items()}
    return {name: text.unique for name, text in texts.items() if isinstance(text, DeclaredText)}


def declared_vocab(data: DataSpec, path: Path) -> int:
    """Number of token ids of a corpus that is not here."""
    match data.tokenizer:
        case Bytes():
            return 256
        case Bbpe() | TokenIds():
            return data.tokenizer.vocab
        case _:
            try:
                file = tokenizer_file(data.tokenizer, path.parent)
                count = token_count(file, data.tokenizer.encoding)
                check_token_count(data.tokenizer, file, count)
                return count
            except InputFileError as error:
                raise locate(
                    path, f"data.{error.field}", f"{error.path}: {error.what}", error.write
                ) from None
