from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Warehouse(NamedTuple):
    """A root for Parquet, the database published from it, and short ways to fill and ask it."""

    root: Path
    db: Path

    def write(
        self,
        table: str,
        rows: list[Any],
        *,
        experiment: str = "e",
        site: str = "s",
        variant: str = "v",
        fingerprint: str = "f1",
        sae_id: str | None = "sae",
        hour: int = 0,
    ) -> Path:
        provenance = Provenance("m", fingerprint, sae_id, "art", 0, NOON + timedelta(hours=hour))
        partition = {"experiment": experiment, "site": site, "variant": variant}
        return write_rows(self.root, table, partition, rows, provenance)

    def ask(self, sql: str, *parameters: Any) -> pl.DataFrame:
        return query(self.db, sql, parameters)

    def publish(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        return publish(self.root, self.db, *args, **kwargs)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "rows", tmp_path / "results.duckdb")


@pytest.fixture
def number() -> Callable[..., Measurement]:
    def measurement(name: str, value: float | None, **more: Any) -> Measurement:
        more.setdefault("reason", "no reason" if value is None else None)
        return Measurement(name, value, more.pop("definition", "d"), **more)

    return measurement


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Two metrics, published; for tests that only read."""
    folder = tmp_path_factory.mktemp("published")
    warehouse = Warehouse(folder / "rows", folder / "results.duckdb")
    warehouse.write("metrics", [Measurement("fvu", 0.5, "d"), Measurement("l0", 3.0, "d")])
    warehouse.publish()
    return warehouse
