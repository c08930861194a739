"""The cells that each machine's experiments declare, shared so that no machine hides another's."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from sae_lib.artifacts import write_atomically
from sae_lib.warehouse.declared import Cell, read_declarations, write_declarations
from sae_lib.warehouse.sync.files import DECLARED
from sae_lib.warehouse.write import decode_value, encode_value

SPLIT = ".split"


def declared_elsewhere(root: Path, known: Collection[str]) -> list[Cell]:
    """Cells of experiments that are not ``known`` here and that another machine declares."""
    cells: list[Cell] = []
    for file in sorted((root / DECLARED).glob("*.json")):
        experiment = decode_value(file.stem)
        if experiment not in known:
            pairs = json.loads(file.read_text("utf-8"))["cells"]
            cells += [(experiment, str(site), str(variant)) for site, variant in pairs]
    return cells


def split_declarations(root: Path) -> None:
    """One file for each experiment that this machine declares, so that each is shared by itself.

    Only those of experiments whose declaration changed here are written.
    """
    known = _read_split(root)
    found: dict[str, list[list[str]]] = {}
    for experiment, pairs in read_declarations(root).cells.items():
        found[experiment] = sorted([site, variant] for site, variant in pairs)
        file = root / DECLARED / f"{encode_value(experiment)}.json"
        text = json.dumps({"cells": found[experiment]}) + "\n"
        if known.get(experiment) == found[experiment]:
            continue
        if not file.is_file() or file.read_text("utf-8") != text:
            write_atomically(file, text)
    if found != known:
        write_atomically(root / DECLARED / SPLIT, json.dumps(found) + "\n")


def join_declarations(root: Path, pulled: Iterable[str]) -> None:
    """What other machines declare counts here too, until this machine declares otherwise."""
    known = _read_split(root)
    declarations = read_declarations(root)
    for path in pulled:
        if not path.startswith(f"{DECLARED}/"):
            continue
        experiment = decode_value(Path(path).stem)
        pairs = json.loads((root / path).read_text("utf-8"))["cells"]
        known[experiment] = pairs
        cells = [(experiment, str(site), str(variant)) for site, variant in pairs]
        declarations = declarations.updated(cells, [experiment])
        write_atomically(root / DECLARED / SPLIT, json.dumps(known) + "\n")
        write_declarations(root, declarations)


def _read_split(root: Path) -> dict[str, list[list[str]]]:
    """Cells of each experiment when this machine's declarations were last split."""
    try:
        return json.loads((root / DECLARED / SPLIT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
