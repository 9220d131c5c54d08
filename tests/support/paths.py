"""Where things are: the checkout, its specs, and the public data that lies beside it on some machines."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "specs"
SHARED = ROOT.parent / "shared"
