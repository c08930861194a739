"""Papers are data, so that a run can list exactly those whose methods it used."""

from typing import NamedTuple


class Paper(NamedTuple):
    """A source, and the place in it that the code follows."""

    cite: str
    url: str
    where: str
    """Section, equation or figure the code follows."""
