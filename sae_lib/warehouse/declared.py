"""Which cells the experiments declare, kept beside the Parquet so that a later publish knows.

A cell is (experiment, site, variant). Rows about a whole site or a whole experiment leave variant,
or site and variant, empty; they are declared when any cell they cover is.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from sae_lib.artifacts import write_atomically
from sae_lib.errors import CorruptData

Cell = tuple[str, str, str]

FILE = "declared.json"
FORMAT_VERSION = 1


class Declarations(NamedTuple):
    """What experiments declare."""

    cells: dict[str, list[tuple[str, str]]]
    """(site, variant) of every cell, by experiment."""

    is_complete: bool
    """Whether an experiment that is not listed declares nothing; else it is not known, and all
    its rows count as declared."""

    def covers(self, experiment: str, site: str, variant: str) -> bool:
        if experiment not in self.cells:
            return not self.is_complete
        return any(site in ("", s) and variant in ("", v) for s, v in self.cells[experiment])

    def updated(self, cells: Iterable[Cell], experiments: Collection[str] | None) -> "Declarations":
        """These, with ``cells`` instead: altogether, or of ``experiments`` only."""
        new: dict[str, list[tuple[str, str]]] = {name: [] for name in experiments or ()}
        for experiment, site, variant in cells:
            new.setdefault(experiment, []).append((site, variant))
        if experiments is None:
            return Declarations(new, is_complete=True)
        return Declarations({**self.cells, **new}, self.is_complete)


NOTHING_KNOWN = Declarations({}, is_complete=False)


def read_declarations(root: Path) -> Declarations:
    """What was last declared under ``root``; raises `CorruptData` where that cannot be read."""
    path = root / FILE
    if not path.exists():
        return NOTHING_KNOWN
    remedy = "Delete it and publish again with the declared cells."
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise CorruptData(
                path,
                f"format version {content['format_version']!r} is not the {FORMAT_VERSION} "
                "this version reads.",
                remedy,
            )
        cells = {
            experiment: [(str(site), str(variant)) for site, variant in pairs]
            for experiment, pairs in content["cells"].items()
        }
        return Declarations(cells, bool(content["is_complete"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptData(path, f"it does not hold declared cells ({error}).", remedy) from error


def write_declarations(root: Path, declarations: Declarations) -> None:
    """Keep ``declarations`` under ``root``; an unchanged file is left alone."""
    content = {"format_version": FORMAT_VERSION, **declarations._asdict()}
    text = json.dumps(content, indent=2) + "\n"
    path = root / FILE
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomically(path, text)
