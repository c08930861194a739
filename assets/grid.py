"""Partitions of one experiment: site x variant, and the cells that a run was asked for."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import dagster as dg

from assets.study import Study, Variant


class Outline(NamedTuple):
    """What the graph has to know of an experiment; no compute library is loaded for it."""

    name: str
    description: str
    file: str
    model: str
    sites: tuple[str, ...]
    variants: tuple[str, ...]
    explains: bool
    applies: bool


def group(outline: Outline, stage: str) -> str:
    """Group of an asset in the UI: one box per experiment, and in it one per stage.

    Group names take no dash; two experiments whose names differ in that alone share a box.
    """
    return f"{outline.name.replace('-', '_')}/{stage}"


def site_partitions(outline: Outline) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(list(outline.sites))


def grid(outline: Outline) -> dg.MultiPartitionsDefinition:
    return dg.MultiPartitionsDefinition(
        {
            "site": site_partitions(outline),
            "variant": dg.StaticPartitionsDefinition(list(outline.variants)),
        }
    )


def cell_key(site: str, variant: str) -> str:
    return str(dg.MultiPartitionKey({"site": site, "variant": variant}))


def cells_of(study: Study, keys: Iterable[str]) -> list[tuple[str, Variant]]:
    """The cells that partition keys of `grid` stand for, in the study's order."""
    wanted = set(keys)
    return [
        (site, variant) for site, variant in study.cells() if cell_key(site, variant.id) in wanted
    ]


def rectangle(outline: Outline, cells: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """First and last key of the smallest partition range that holds every cell."""
    sites = [outline.sites.index(site) for site, _ in cells]
    variants = [outline.variants.index(variant) for _, variant in cells]
    first = cell_key(outline.sites[min(sites)], outline.variants[min(variants)])
    last = cell_key(outline.sites[max(sites)], outline.variants[max(variants)])
    return first, last
