"""What a step does when something goes wrong, and what the tables say when rows are wrong."""

from errno import EIO, ENOSPC
from pathlib import Path

import dagster as dg
import pytest

from assets.conditions import RETRY, counting, explained
from assets.grid import Outline, cell_key, ranges
from assets.rows import Attempts, SeveralFailed
from assets.temporary import sweep
from sae_lib.artifacts import Busy
from sae_lib.errors import BadInput
from sae_lib.warehouse.checks import CHECKS, check_tables
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.rows import LatentRow, Measurement
from sae_lib.warehouse.write import Provenance, write_rows


def tries(error: BaseException) -> tuple[int, str]:
    """How often a step is tried that always raises ``error``, and what the run says."""
    count = 0

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=RETRY.max_retries))
    def step() -> None:
        nonlocal count
        count += 1
        with explained():
            raise error

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([step], instance=instance, raise_on_error=False)
        (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    data = failure.step_failure_data
    told = data.user_failure_data.description if data.user_failure_data else data.error.message
    return count, told or ""


def test_only_what_may_go_away_is_tried_again():
    assert tries(Busy("another process writes it"))[0] == 3
    assert tries(ConnectionResetError("gone"))[0] == 3
    assert tries(OSError(EIO, "input/output error"))[0] == 3
    assert tries(BadInput("no such key", key="k"))[0] == 1
    assert tries(FileNotFoundError("weights"))[0] == 1
    assert tries(ZeroDivisionError("a fault of ours")) == (1, "ZeroDivisionError: a fault of ours")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), dg.DagsterExecutionInterruptedError()])
def test_a_step_that_is_stopped_is_not_tried_again(stop: BaseException):
    assert tries(stop) == (1, "stopped by request")


def test_a_full_disk_says_so_and_is_not_tried_again():
    count, told = tries(OSError(ENOSPC, "No space left on device"))
    assert count == 1
    assert "the disk is full" in told
    assert "nothing is lost" in told


@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning")
def test_a_step_that_fails_records_what_it_finished():
    key = dg.AssetKey(["many"])
    parts = dg.StaticPartitionsDefinition(["a", "b", "c"])

    @dg.asset(key=key, partitions_def=parts, backfill_policy=dg.BackfillPolicy.single_run())
    def many(context: dg.AssetExecutionContext) -> None:
        with counting(context, key, lambda: ["a", "c"]):
            raise BadInput("b is broken", key="b")

    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([many], instance=instance, tags=tags, raise_on_error=False)
        assert not result.success
        assert instance.get_materialized_partitions(key) == {"a", "c"}


def test_pieces_go_on_when_one_fails_and_its_error_comes_out_as_it_was():
    attempts, done = Attempts(), []
    for piece in ("a", "b", "c"):
        with attempts.at(piece):
            if piece == "b":
                raise BadInput("b is wrong", key="b")
            done.append(piece)
    assert done == ["a", "c"]
    with pytest.raises(BadInput, match="b is wrong"):
        attempts.conclude()


def test_several_failures_are_named_together_and_retried_only_if_all_may_pass():
    attempts = Attempts()
    with attempts.at("a"):
        raise BadInput("a is wrong", key="a")
    with attempts.at("b"):
        raise Busy("b is held")
    with pytest.raises(SeveralFailed) as caught:
        attempts.conclude()
    assert "a is wrong" in str(caught.value)
    assert "b is held" in str(caught.value)
    assert not caught.value.is_transient
    Attempts().conclude()


def outline(sites: tuple[str, ...], variants: tuple[str, ...]) -> Outline:
    cells = {cell_key(site, variant): (site,) for site in sites for variant in variants}
    return Outline("e", "", "e.yaml", "m", sites, variants, False, False, False, cells)


def test_ranges_hold_exactly_the_cells_and_stay_within_a_site():
    grid = outline(("s1", "s2"), ("a", "b", "c", "d"))
    cells = [("s1", "a"), ("s1", "b"), ("s1", "d"), ("s2", "a"), ("s2", "b")]
    assert ranges(grid, cells) == [("s1|a", "s1|b"), ("s1|d", "s1|d"), ("s2|a", "s2|b")]
    assert ranges(grid, []) == []
    everything = [(site, variant) for site in grid.sites for variant in grid.variants]
    assert ranges(grid, everything) == [("s1|a", "s1|d"), ("s2|a", "s2|d")]


def test_ranges_of_a_ragged_grid_follow_its_list():
    ragged = outline(("s1", "s2"), ("a", "b"))
    ragged = ragged._replace(cells={key: ragged.cells[key] for key in ("s1|a", "s1|b", "s2|b")})
    assert ranges(ragged, [("s1", "b"), ("s2", "b")]) == [("s1|b", "s2|b")]


@pytest.fixture
def warehouse(tmp_path: Path):
    """A warehouse with one SAE whose numbers are in order; writes more rows on demand."""
    from sae_lib.evaluate.reconstruction import ReconstructionConfig

    fvu = next(one for one in ReconstructionConfig().definitions() if one.name == "fvu")

    def write(variant: str, value: float, density: float = 0.1) -> None:
        keys = {"experiment": "e", "site": "s", "variant": variant}
        told = Provenance("m", "f", sae_id="x", artifact_id="y")
        row = Measurement("fvu", value, fvu.definition, fvu.version)
        write_rows(tmp_path, "metrics", keys, [row], told)
        write_rows(tmp_path, "latents", keys, [LatentRow(0, density, 1.0, 2.0, None)], told)

    definition = {
        "name": "fvu",
        "definition": fvu.definition,
        "version": fvu.version,
        "text": fvu.text,
        "better": fvu.better,
        "low": 0.0,
    }
    write_rows(tmp_path, "definitions", {}, [definition], Provenance("", ""))
    write("good", 0.5)
    return tmp_path, write


def broken(root: Path) -> dict[str, int]:
    cells = [("e", "s", "good"), ("e", "s", "bad")]
    publish(root, root / "results.duckdb", cells)
    return {one.check.name: one.broken for one in check_tables(root / "results.duckdb")}


def test_the_checks_of_the_database_find_rows_that_are_wrong(warehouse):
    root, write = warehouse
    found = broken(root)
    assert found.keys() == {check.name for check in CHECKS}
    # the table of SAEs is empty here, and one declared cell has no numbers
    assert {name for name, number in found.items() if number} == {
        "measured_saes_are_known",
        "declared_cells_are_measured",
    }
    write("bad", -0.5, density=1.5)
    write("gone", 0.5)
    found = broken(root)
    assert found["values_are_possible"] == 1
    assert found["densities_are_shares"] == 1
    assert found["rows_are_declared"] == 1
    assert found["declared_cells_are_measured"] == 0
    # the same numbers once more, in a file that another version left in the partition
    part = root / "metrics" / "experiment=e" / "site=s" / "variant=good"
    (held,) = part.glob("rows-*.parquet")
    (part / "rows-copy.parquet").write_bytes(held.read_bytes())
    assert broken(root)["no_row_stands_twice"] == 1


def test_a_sweep_takes_files_of_dead_writers_only(tmp_path: Path):
    import os

    folder = tmp_path / "warehouse" / "metrics"
    folder.mkdir(parents=True)
    dead = [folder / ".999999999-1-2.tmp", folder / ".ledger.json.999999998"]
    alive = [folder / f".{os.getpid()}-1-2.tmp", folder / "rows.parquet", folder / ".x.lock"]
    for file in dead + alive:
        file.write_text("")
    assert sweep(tmp_path) == 2
    assert not any(file.exists() for file in dead)
    assert all(file.exists() for file in alive)
