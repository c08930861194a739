"""One file per kind of document; a new file here is a new kind."""

from sae_lib.registry import import_members
from sae_lib.synthetic.world.kind import KINDS

import_members(__name__, __path__)

__all__ = ["KINDS"]
