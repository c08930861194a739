"""Where a dashboard's rows come from: the results database, or the warehouse's own files.

Either gives the rows of one cell, that is of one SAE at one site in one experiment. What an older
version wrote may lack columns or tables: those are empty, and the page says what is absent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import polars as pl

from sae_lib.errors import BadInput, NotApplicable, UnknownName
from sae_lib.warehouse.query import describe, query
from sae_lib.warehouse.tables import TABLES
from sae_lib.warehouse.write import partition_path


class Cell(NamedTuple):
    """What names one SAE in the warehouse."""

    experiment: str
    site: str
    variant: str

    def __str__(self) -> str:
        return " ".join(self)


@runtime_checkable
class Source(Protocol):
    """Rows of one cell."""

    cell: Cell
    home: Path
    """Folder that holds the artefacts."""

    def rows(self, table: str, low: int | None = None, high: int | None = None) -> pl.DataFrame:
        """Rows of ``table``, of the latents from ``low`` up to ``high`` where these are given.

        All of the table's own columns are there; those never written are NULL.
        """
        ...

    def of_experiment(self) -> pl.DataFrame:
        """The one row of the experiment, or none."""
        ...

    def of_sae(self) -> dict[str, Any]:
        """The row of the SAE; without columns where there is none."""
        ...


class Published:
    """Rows from a results database."""

    def __init__(self, db: Path, cell: Cell) -> None:
        self.db, self.cell, self.home = db, cell, db.parent
        self._columns: dict[str, set[str]] = {}
        names = describe(db).filter(schema="main")
        for table, name in names.select("table", "column").iter_rows():
            self._columns.setdefault(table, set()).add(name)

    def rows(self, table: str, low: int | None = None, high: int | None = None) -> pl.DataFrame:
        where = "experiment = ? and site = ? and variant = ?"
        parameters: list[Any] = [*self.cell]
        if low is not None or high is not None:
            where += " and latent >= ? and latent < ?"
            parameters += [low or 0, 2**62 if high is None else high]
        own = [c.name for c in TABLES[table].columns if c.name in self._columns.get(table, ())]
        if not own:
            return shaped(pl.DataFrame(), table)
        # of applications those on the version of the model that is in use
        name = "latest_applications" if table == "applications" else table
        columns = ", ".join(f'"{column}"' for column in own)
        return shaped(
            query(self.db, f"select {columns} from {name} where {where}", parameters), table
        )

    def of_experiment(self) -> pl.DataFrame:
        if "experiments" not in self._columns:
            return pl.DataFrame()
        sql = "select * from stored.experiments where experiment = ? limit 1"
        return query(self.db, sql, [self.cell.experiment])

    def of_sae(self) -> dict[str, Any]:
        sql = "select * from stored.saes where experiment = ? and site = ? and variant = ?"
        found = query(self.db, sql, [*self.cell]).to_dicts()
        return found[0] if found else {}


class Landed:
    """Rows from the warehouse's files, which are newer than a database that is not published yet.

    ``model_fingerprint`` names the version of the model whose rows are wanted of tables that keep
    history.
    """

    def __init__(self, warehouse: Path, cell: Cell, model_fingerprint: str) -> None:
        self.warehouse, self.cell, self.home = warehouse, cell, warehouse.parent
        self.model_fingerprint = model_fingerprint

    def _scan(self, table: str, partition: dict[str, str]) -> pl.LazyFrame | None:
        path = partition_path(self.warehouse, table, partition, self.model_fingerprint)
        return pl.scan_parquet(path, hive_partitioning=False) if path.is_file() else None

    def rows(self, table: str, low: int | None = None, high: int | None = None) -> pl.DataFrame:
        frame = self._scan(table, self.cell._asdict())
        if frame is None:
            return shaped(pl.DataFrame(), table)
        if low is not None or high is not None:
            upper = 2**62 if high is None else high
            frame = frame.filter(pl.col("latent").is_between(low or 0, upper, closed="left"))
        return shaped(frame.collect(), table)

    def of_experiment(self) -> pl.DataFrame:
        frame = self._scan("experiments", {"experiment": self.cell.experiment})
        return pl.DataFrame() if frame is None else frame.collect()

    def of_sae(self) -> dict[str, Any]:
        frame = self._scan("saes", self.cell._asdict())
        found = [] if frame is None else frame.collect().to_dicts()
        return found[0] if found else {}


def shaped(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """``frame`` with exactly the own columns of ``table``; missing ones are NULL."""
    spec = TABLES[table]
    if frame.width == 0:
        return pl.DataFrame(schema={column.name: column.dtype for column in spec.columns})
    return frame.select(
        pl.col(column.name)
        if column.name in frame.columns
        else pl.lit(None, dtype=column.dtype).alias(column.name)
        for column in spec.columns
    )


def find_cell(
    db: Path, words: Sequence[str], *, experiment: str | None = None, site: str | None = None
) -> Cell:
    """The cell that ``words`` name: a hash or name of an SAE, or EXPERIMENT SITE VARIANT.

    One word may be an SAE's hash, the name of its artefact with or without the hash, or its
    variant; ``experiment`` and ``site`` choose between several. Raises `UnknownName` with the
    nearest name, `BadInput` where several fit, `NotApplicable` for an SAE nobody has explained.
    """
    rows = query(
        db,
        "select experiment, site, variant, sae_id, path from saes "
        "order by created_at desc, experiment, site, variant",
    ).to_dicts()
    if len(words) == 3:
        experiment, site, word = words
    elif len(words) == 1:
        word = words[0]
    else:
        raise BadInput(
            "name an SAE by its hash, by the name of its artefact, or by EXPERIMENT SITE VARIANT.",
            key="SAE",
            value=" ".join(words),
        )
    for what, column, given in (("experiment", "experiment", experiment), ("site", "site", site)):
        if given is not None:
            if all(row[column] != given for row in rows):
                raise UnknownName(f"{what} with SAEs", given, {row[column] for row in rows})
            rows = [row for row in rows if row[column] == given]
    found = [row for row in rows if word in _names(row)]
    if not found:
        names = {name for row in rows for name in _names(row)}
        raise UnknownName("SAE", word, sorted(names, key=len)[:200])
    cells = list(dict.fromkeys(Cell(r["experiment"], r["site"], r["variant"]) for r in found))
    explained = [cell for cell in cells if _is_explained(db, cell)]
    if not explained:
        raise NotApplicable(
            "dashboard",
            f"{cells[0]} has no explained latents. `sae run {cells[0].experiment}` makes them, "
            "where the experiment says explain:.",
        )
    saes = {row["sae_id"] for row in found}
    if len(explained) > 1 and len(saes) > 1:
        raise BadInput(
            "several SAEs are called so; say --experiment and --site, or one of: "
            f"{'; '.join(map(str, explained[:6]))}.",
            key="SAE",
            value=word,
        )
    return explained[0]


def _names(row: dict[str, Any]) -> list[str]:
    """Everything that an SAE may be called by."""
    folder = Path(row["path"]).name if row["path"] else ""
    names = [row["sae_id"], folder, folder.removesuffix(f"-{row['sae_id']}"), row["variant"]]
    return [name for name in names if name]


def _is_explained(db: Path, cell: Cell) -> bool:
    sql = (
        "select count(*) from (select 1 from latents where experiment = ? and site = ? "
        "and variant = ? limit 1)"
    )
    return query(db, sql, [*cell]).item() > 0


def questions(cell: Cell) -> dict[str, str]:
    """The SQL behind each panel, which ends where the number of a latent has to follow."""
    where = " and ".join(
        f"{name} = '{value.replace(chr(39), 2 * chr(39))}'"
        for name, value in cell._asdict().items()
    )
    return {
        "statistics": "select latent, label, density, mean_activation, std_activation, "
        f"max_activation, histogram, histogram_edges\nfrom latents\nwhere {where}\n  and latent = ",
        "explanations": "select method, text, keywords, keyword_scores, score, score_definition\n"
        f"from explanations\nwhere {where}\n  and latent = ",
        "scores": "select metric, name, definition, method, value, n, reason\n"
        f"from latent_scores\nwhere {where}\n  and latent = ",
        "examples": "select kind, rank, interval, low, high, share, document, position, peak, "
        f"tokens, activations\nfrom examples\nwhere {where}\n  and latent = ",
        "near": "select kind, rank, other, value, num_tokens, share, lift\n"
        f"from latent_pairs\nwhere {where}\n  and latent = ",
        "concept": "select task as concept, value as f1, params\nfrom latest_applications\n"
        f"where {where}\n  and application = 'concepts' and method = 'sae' and name = 'f1'\n"
        "  and (params ->> 'latent')::BIGINT = ",
    }
