"""Explanations of latents: one file per method, found and registered on import."""

from sae_lib.explain.base import EXPLAINERS, ExplainerConfig, read_explainer
from sae_lib.explain.run import Explained, explain_site
from sae_lib.registry import import_members

import_members(__name__, __path__)

__all__ = ["EXPLAINERS", "Explained", "ExplainerConfig", "explain_site", "read_explainer"]
