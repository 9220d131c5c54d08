"""What is done to text before it becomes a corpus: steps of datatrove, by its own names and with its own parameters.

Each is a filter, which looks at one document, or a deduplication, which looks at all. Defaults are datatrove 0.10's.
"""

from typing import Annotated, Literal

from pydantic import Field

from specs.document.base import Spec


class GopherQualityFilter(Spec):
    """Word counts, word lengths, symbols and stop words (Rae et al., arXiv 2112.11446, appendix A1)."""

    step: Literal["GopherQualityFilter"]
    """Selects this step."""
    min_doc_words: int | None = 50
    """Fewest words of a document; null for any number."""
    max_doc_words: int | None = 100_000
    """Most words of a document."""
    min_avg_word_length: float | None = 3
    """Smallest mean length of words, in characters."""
    max_avg_word_length: float | None = 10
    """Largest mean length of words, in characters."""
    max_symbol_word_ratio: float | None = 0.1
    """Most hash signs and ellipses, each per word."""
    max_bullet_lines_ratio: float | None = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines_ratio: float | None = 0.3
    """Largest share of lines that end with an ellipsis."""
    max_non_alpha_words_ratio: float | None = 0.8
    """Smallest share of words with a letter."""
    min_stop_words: int | None = 2
    """Fewest stop words."""
    language: str = "eng"
    """Language whose words are counted, as datatrove names it."""


class GopherRepetitionFilter(Spec):
    """Repeated lines, paragraphs and n-grams (Rae et al., arXiv 2112.11446, table A1)."""

    step: Literal["GopherRepetitionFilter"]
    """Selects this step."""
    dup_line_frac: float | None = 0.3
    """Largest share of lines that repeat others."""
    dup_para_frac: float | None = 0.3
    """Largest share of paragraphs that repeat others."""
    dup_line_char_frac: float | None = 0.2
    """Largest share of characters in repeated lines."""
    dup_para_char_frac: float | None = 0.2
    """Largest share of characters in repeated paragraphs."""
    language: str = "eng"
    """Language whose words are counted, as datatrove names it."""


class C4QualityFilter(Spec):
    """Lines without an end, short pages, code and boilerplate (Raffel et al., arXiv 1910.10683, section 2.2). Lines
    of documents go too."""

    step: Literal["C4QualityFilter"]
    """Selects this step."""
    remove_citations: bool = True
    """Remove [1] and its kind."""
    filter_no_terminal_punct: bool = True
    """Remove lines that do not end as a sentence does."""
    min_num_sentences: int = 5
    """Fewest sentences of a document; -1 for any number."""
    min_words_per_line: int = 3
    """Fewest words of a line; -1 for any number."""
    max_word_length: int = 1000
    """Remove lines with a longer word; -1 for any length."""
    filter_lorem_ipsum: bool = True
    """Drop documents with it."""
    filter_javascript: bool = True
    """Remove lines that mention it."""
    filter_curly_bracket: bool = True
    """Drop documents with one."""
    filter_policy: bool = True
    """Remove lines about cookies and terms of use."""
    language: str = "eng"
    """Language whose sentences are counted, as datatrove names it."""


class C4BadWordsFilter(Spec):
    """Documents with a word of a list (Raffel et al., arXiv 1910.10683, section 2.2)."""

    step: Literal["C4BadWordsFilter"]
    """Selects this step."""
    words: str = Field(min_length=1)
    """File of the list, a word a line, relative to the document it is written in."""


class FineWebQualityFilter(Spec):
    """Ends of lines, short lines and repeated characters (Penedo et al., arXiv 2406.17557, section 3.5)."""

    step: Literal["FineWebQualityFilter"]
    """Selects this step."""
    line_punct_thr: float = 0.12
    """Smallest share of lines that end with punctuation."""
    short_line_thr: float = 0.67
    """Largest share of short lines."""
    short_line_length: int = 30
    """Characters of a line that is no longer short."""
    char_duplicates_ratio: float = 0.01
    """Largest share of characters in repeated lines."""
    new_line_ratio: float = 0.3
    """Most line ends per word."""
    language: str = "eng"
    """Language whose words are counted, as datatrove names it."""


class LanguageFilter(Spec):
    """Documents of some languages, by a fastText model."""

    step: Literal["LanguageFilter"]
    """Selects this step."""
    model: str = Field(min_length=1)
    """File of the model (lid.176.bin, say), relative to the document it is written in. Nothing is downloaded."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Languages that are kept, by the model's labels."""
    language_threshold: float = Field(default=0.65, ge=0, le=1)
    """Smallest score of the language."""


class ExactDedup(Spec):
    """One document of each text, or of each URL: the first."""

    step: Literal["ExactDedup"]
    """Selects this step."""
    key: str = "text"
    """What is compared: `text`, or another key of the records, such as `url`. Records without it are kept."""


class MinhashDedup(Spec):
    """One document of each cluster of near duplicates: those with a band of MinHashes in common (Broder 1997). Which
    one follows from the files alone; it need not be the first."""

    step: Literal["MinhashDedup"]
    """Selects this step."""
    n_grams: int = Field(default=5, ge=1)
    """Words of a shingle."""
    num_buckets: int = Field(default=14, ge=1)
    """Bands; with the next, documents of similarity s meet with probability 1 - (1 - s^hashes)^buckets."""
    hashes_per_bucket: int = Field(default=8, ge=1)
    """Hashes of a band."""
    seed: int = Field(default=1, ge=0)
    """Seed of the hash functions."""
    language: str = "eng"
    """Language whose words are counted, as datatrove names it."""


FilterStep = (
    GopherQualityFilter
    | GopherRepetitionFilter
    | C4QualityFilter
    | C4BadWordsFilter
    | FineWebQualityFilter
    | LanguageFilter
)
CurationStep = Annotated[FilterStep | ExactDedup | MinhashDedup, Field(discriminator="step")]


EXAMPLE_CHARACTERS = 300
"""Of a dropped document that is shown."""


class DroppedDocument(Spec):
    """A document that a step dropped."""

    reason: str
    """Why, in datatrove's words; empty where it says nothing."""
    text: str
    """Its beginning."""


class CurationStage(Spec):
    """What a step left of the documents."""

    step: str
    """Its name."""
    read: int = Field(ge=0)
    """Documents that came to it."""
    dropped: int = Field(ge=0)
    """Documents that it dropped."""
    reasons: dict[str, int]
    """How many for which reason, in datatrove's words."""
    examples: tuple[DroppedDocument, ...]
    """The first of these."""

    @property
    def kept(self) -> int:
        """Documents that it left."""
        return self.read - self.dropped


class CuratedText(Spec):
    """What the steps left of a text."""

    source: str
    """The source of a mix; empty where the text is no mix."""
    steps: tuple[CurationStage, ...] = Field(min_length=1)
    """What each step left, in order."""
