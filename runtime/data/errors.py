"""The errors of a corpus."""

from specs.exit_codes import InputError


class CorpusError(InputError):
    """A corpus that cannot be built or used: what is wrong, and what to do."""


class KilledWorkerError(CorpusError):
    """A process that worked on a corpus was killed; what the others finished is kept."""
