"""Sparse coders: one file per architecture, found and registered when the package is imported."""

from sae_lib.registry import import_members
from sae_lib.saes.base import CODERS, VARIANTS, SaeConfig, SparseCoder, Step, Terms, register

import_members(__name__, __path__)

__all__ = ["CODERS", "VARIANTS", "SaeConfig", "SparseCoder", "Step", "Terms", "register"]
