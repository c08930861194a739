"""What the survey and its papers claim about SAE variants, checked against measured results.

`CLAIMS` holds every claim by name; `evaluate` judges them on the results of one experiment. What
refutes a claim is a result like what supports it: both land in the table ``claims``.
"""

from sae_lib.claims.base import Claim, Selector
from sae_lib.claims.judge import ClaimRow, evaluate
from sae_lib.claims.listed import CLAIMS

__all__ = ["CLAIMS", "Claim", "ClaimRow", "Selector", "evaluate"]
