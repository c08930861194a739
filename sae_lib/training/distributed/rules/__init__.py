"""How the loss of a variant is split among processes: one file each, named after the variant."""

from sae_lib.registry import import_members
from sae_lib.training.distributed.rules.base import RULES, Rule, check_split, rule

import_members(__name__, __path__)

__all__ = ["RULES", "Rule", "check_split", "rule"]
