"""Partitions of one experiment: site x variant, and the cells that a run was asked for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from assets.study import Study, Variant


class Outline(NamedTuple):
    """What the graph has to know of an experiment; no compute library is loaded for it."""

    name: str
    description: str
    file: str
    model: str

    sites: tuple[str, ...]
    """Where SAEs are trained: sites, and places of several."""

    variants: tuple[str, ...]
    explains: bool
    applies: bool

    groups_layers: bool
    """Whether some of its SAEs stand for groups of layers."""

    cells: Mapping[str, Sequence[str]]
    """For each cell, by its key, the single sites whose activations it learns from."""

    model_config: Mapping[str, Any] = {}
    """Which language model, as the file says it."""

    reevaluate: str = "never"
    """When results follow a changed model: never, on_change, or a cron line."""

    retrains: bool = False
    """Whether SAEs are trained anew when the model changes."""

    watch: bool = False
    """Whether the folder of its model is watched from the start."""

    owners: Sequence[str] = ()
    """Whom the graph names as owners: addresses, or team:NAME."""

    @property
    def single_sites(self) -> list[str]:
        """Sites that are harvested, in order."""
        return list(dict.fromkeys(site for sites in self.cells.values() for site in sites))

    @property
    def is_rectangular(self) -> bool:
        """Whether every variant is trained at every site, from that site alone."""
        return len(self.cells) == len(self.sites) * len(self.variants) and all(
            list(sites) == [key.split("|")[0]] for key, sites in self.cells.items()
        )


def group(outline: Outline, stage: str) -> str:
    """Group of an asset in the UI: one box per experiment, and in it one per stage.

    Group names take no dash; two experiments whose names differ in that alone share a box.
    """
    return f"{outline.name.replace('-', '_')}/{stage}"


def site_partitions(outline: Outline) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(outline.single_sites)


def grid(outline: Outline) -> dg.PartitionsDefinition:
    """Cells of the experiment: a grid, or where some of its cells do not exist a list of them."""
    if not outline.is_rectangular:
        return dg.StaticPartitionsDefinition(list(outline.cells))
    return dg.MultiPartitionsDefinition(
        {
            "site": site_partitions(outline),
            "variant": dg.StaticPartitionsDefinition(list(outline.variants)),
        }
    )


def from_sites(outline: Outline, upstream: dg.AssetKey) -> dg.AssetDep:
    """Dependence of `grid` on an asset that has a partition per single site."""
    if outline.is_rectangular:  # the orchestrator sees by itself how they go together
        return dg.AssetDep(upstream)
    readers = {
        site: [key for key, sites in outline.cells.items() if site in sites]
        for site in outline.single_sites
    }
    return dg.AssetDep(upstream, partition_mapping=dg.StaticPartitionMapping(readers))


def cell_key(site: str, variant: str) -> str:
    return f"{site}|{variant}"


def cells_of(study: Study, keys: Iterable[str]) -> list[tuple[str, Variant]]:
    """The cells that partition keys of `grid` stand for, in the study's order."""
    wanted = set(keys)
    return [
        (site, variant) for site, variant in study.cells() if cell_key(site, variant.id) in wanted
    ]


def ranges(outline: Outline, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """First and last keys of the fewest partition ranges that hold exactly ``cells``.

    A range of a grid is a rectangle; here each stays within one site, in the order of variants.
    """
    keys = list(outline.cells)
    wanted = {cell_key(site, variant) for site, variant in cells}
    found: list[tuple[str, str]] = []
    previous = ""
    for key in keys:
        site = key.split("|")[0]
        if key not in wanted:
            previous = ""
            continue
        goes_on = previous and (not outline.is_rectangular or previous.split("|")[0] == site)
        if goes_on:
            found[-1] = (found[-1][0], key)
        else:
            found.append((key, key))
        previous = key
    return found


def rectangle(outline: Outline, cells: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """First and last key of the smallest partition range that holds every cell."""
    if not outline.is_rectangular:
        keys = list(outline.cells)
        places = [keys.index(cell_key(site, variant)) for site, variant in cells]
        return keys[min(places)], keys[max(places)]
    sites = [outline.sites.index(site) for site, _ in cells]
    variants = [outline.variants.index(variant) for _, variant in cells]
    first = cell_key(outline.sites[min(sites)], outline.variants[min(variants)])
    last = cell_key(outline.sites[max(sites)], outline.variants[max(variants)])
    return first, last
