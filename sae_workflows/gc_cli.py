"""The command `sae gc`: delete what nothing asks for any more, after asking."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sae_lib.errors import BadInput
from sae_workflows.console import AsJson, Home, home_of, out, show_rows
from sae_workflows.home import outlines, study_at

MIB = 2**20


def gc(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    files: Annotated[bool, typer.Option("--files", help="Name every file and folder.")] = False,
    rows: Annotated[
        bool,
        typer.Option("--rows", help="Also results of experiments that are gone."),
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Delete artefacts that no experiment asks for, unfinished ones, and what killed writers left.

    SAEs that an experiment keeps from an earlier version of its model are asked for. Results of
    experiments that are gone are kept unless --rows is given.
    """
    from assets.store import Store
    from assets.temporary import delete
    from assets.unreferenced import leftovers

    folder = home_of(home)
    known, broken = outlines(folder)
    if broken:
        raise BadInput(
            "an experiment file cannot be read, so nobody knows what it asks for: "
            + "; ".join(broken.values())
            + " Mend it, or remove it, and ask again.",
            file=Path(next(iter(broken))),
        )
    studies = [study_at(folder, Path(outline.file)) for outline in known]
    declared = {f"{one.name}|{key}" for one in known for key in one.cells}
    declared |= {f"{one.name}||" for one in known}
    found = leftovers(Store(home=str(folder)), studies, declared)
    found = [one for one in found if rows or one.kind != "rows"]
    if as_json:
        shown = [{**one._asdict(), "path": str(one.path)} for one in found]
    elif files:
        shown = [
            {"kind": one.kind, "path": str(one.path.relative_to(folder)), "MiB": one.bytes / MIB}
            | {"why": one.why}
            for one in found
        ]
    else:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for one in found:
            what = one.path.parent.name if one.kind == "artefact" else one.kind
            groups[one.kind, what].append(one.bytes)
        shown = [
            {"kind": kind, "what": what, "number": len(sizes), "MiB": sum(sizes) / MIB}
            for (kind, what), sizes in groups.items()
        ]
    if not as_json and not found:
        out.print("Nothing to delete: everything that is kept is asked for.")
        return
    show_rows(shown, title="not needed any more", as_json=as_json)
    if dry_run or (as_json and not yes):
        return
    if not yes and not typer.confirm(f"Delete {len(found)} of these?", default=False):
        out.print("Nothing was deleted.")
        return
    delete(found)
    total = sum(one.bytes for one in found) / MIB
    if not as_json:
        out.print(Text(f"Deleted {len(found)}, {total:,.1f} MiB."))
