"""Applications of sparse coders: one file per application, found and registered on import."""

from sae_lib.apply.base import (
    APPLICATIONS,
    ApplicationConfig,
    Applied,
    Bench,
    read_application,
)
from sae_lib.apply.run import SiteApplied, apply_site
from sae_lib.registry import import_members

import_members(__name__, __path__)

__all__ = [
    "APPLICATIONS",
    "ApplicationConfig",
    "Applied",
    "Bench",
    "SiteApplied",
    "apply_site",
    "read_application",
]
