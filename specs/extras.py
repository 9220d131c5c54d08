"""What only training needs is installed by an extra: which packages these are, and what to say where one is missing."""

import importlib.util
from collections.abc import Iterable

from specs.exit_codes import InputError

TRAIN = ("torch", "tokenizers", "safetensors", "tensorboard", "xxhash")
"""What a rank imports, by the name that is imported."""
SUBMIT = ("submitit",)
"""What queues jobs of SLURM, beside these."""
CURATE = ("datatrove", "orjson", "spacy")
"""What curates text."""
TRACKERS = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}
"""What sends curves to each tracker; the extra has the tracker's name."""
INSTALL = "pip install 'isoplan[train]'"
INSTALL_DATA = "pip install 'isoplan[data]'"


def require(verb: str, packages: Iterable[str], install: str = INSTALL) -> None:
    """InputError with what to install, where a package is missing; none is imported."""
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        raise _missing(verb, missing, install)


def as_input_error(error: Exception, verb: str) -> InputError | None:
    """What to install, where an import failed because a package of the extra is missing; None for any other error."""
    name = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if name not in (*TRAIN, *SUBMIT):
        return None
    return _missing(verb, [name])


def _missing(verb: str, names: list[str], install: str = INSTALL) -> InputError:
    are = "is" if len(names) == 1 else "are"
    return InputError(f"{verb} needs {', '.join(names)}, which {are} not installed; run: {install}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
