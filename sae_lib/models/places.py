"""What an SAE reads and what it reconstructs, by name: one site, several, or from one to another.

resid_post.2                        reads and reconstructs the activations of a site
resid_post.1+resid_post.2           the activations of several sites, one after the other
resid_mid.2>mlp_out.2               reads the one, reconstructs the other
"""

from typing import NamedTuple

from sae_lib.errors import BadInput

AND, TO = "+", ">"


class Place(NamedTuple):
    """Sites whose activations are read, and sites whose activations are reconstructed."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that ``text`` names; whether a model has its sites is for `check_site`.

        Raises:
            BadInput: a part is empty, a site stands twice on one side, or there are two arrows.
        """
        sides = [tuple(site.strip() for site in side.split(AND)) for side in text.split(TO)]
        for side in sides:
            if not all(side):
                raise BadInput(f"a site is missing beside {AND} or {TO}.", value=text)
            if len(set(side)) < len(side):
                raise BadInput("a site stands twice.", value=text)
        if len(sides) > 2:
            raise BadInput(f"a place has one {TO} at most: FROM{TO}TO.", value=text)
        return cls(sides[0], sides[-1])

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site, each once, in the order in which they are named."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))

    @property
    def is_map(self) -> bool:
        """Whether what is reconstructed is not what is read."""
        return self.reads != self.writes

    @property
    def is_single(self) -> bool:
        """Whether it is one site that reconstructs itself."""
        return len(self.sites) == 1

    def __str__(self) -> str:
        name = AND.join(self.reads)
        return f"{name}{TO}{AND.join(self.writes)}" if self.is_map else name
