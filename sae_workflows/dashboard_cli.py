"""`sae dashboard`: the latents of one SAE as one page to look through."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sae_workflows.console import AsJson, Home, err, fresh_database, home_of, out, show_rows

Sae = Annotated[
    list[str],
    typer.Argument(
        metavar="SAE", help="Hash or name of an SAE, its variant, or: EXPERIMENT SITE VARIANT."
    ),
]


def dashboard(
    sae: Sae,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Which of several experiments.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="Which of several sites.")] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="File to write; default in HOME/reports.")
    ] = None,
    latents: Annotated[
        int | None, typer.Option("--latents", min=1, help="At most so many latents.")
    ] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """One self-contained HTML page with the latents of an SAE: labels, examples, neighbours, map.

    It is made of what the experiment explained; nothing is computed by the model.
    """
    from sae_lib.report.dashboard import Published, find_cell
    from sae_lib.report.dashboard import dashboard as write

    folder = home_of(home)
    database = fresh_database(folder)
    cell = find_cell(database, sae, experiment=experiment, site=site)
    file = to or default_page(folder, *cell)
    made = write(Published(database, cell), file, latents=latents)
    if as_json:
        row = {
            **cell._asdict(),
            "page": str(made.path),
            "bytes": made.num_bytes,
            "latents": made.num_latents,
            "left_out": made.left_out,
            "absent": made.absent,
        }
        show_rows([row], title="", as_json=True)
    else:
        out.print(str(made.path), soft_wrap=True, markup=False, highlight=False)
        out.print(f"{made.num_latents:,} latents of {cell}, {made.num_bytes / 1e6:.1f} MB",
                  soft_wrap=True, markup=False, highlight=False)  # fmt: skip
        for text in made.left_out:
            err.print(text, style="yellow", soft_wrap=True, markup=False, highlight=False)
    if opens:
        webbrowser.open(made.path.resolve().as_uri())


def default_page(home: Path, experiment: str, site: str, variant: str) -> Path:
    """Where the page of a cell lies; the graph's asset writes there as well."""
    from assets.dashboards import page_at

    return page_at(home, experiment, site, variant)
