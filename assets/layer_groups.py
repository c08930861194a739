"""Which layers share an SAE: distances between sites, their clustering, and what was chosen."""

import json
from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.activations import activations_key, harvest_sites
from assets.conditions import RETRY, explained, follows
from assets.grid import Outline, group
from assets.requests import pool_of, tags_of
from assets.store import EVERYTHING, Store, save_rows
from assets.study import CODE_VERSIONS, Study, Variant
from sae_lib.artifacts import Identity

TABLES = ("site_distances", "layer_groups")

DISTANCE_TOKENS = 100_000
"""Tokens that angles are averaged over."""

Log = Callable[[str], None]


def layer_groups_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "layer_groups"])


def layer_groups_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=layer_groups_key(outline.name),
        group_name=group(outline, "data"),
        kinds={"scipy", "parquet"},
        tags={"stage": "layer_groups"},
        op_tags=tags_of("layer_groups"),
        pool=pool_of("layer_groups"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        deps=[activations_key(outline.name)],
        description="Angular distances between the sites that layer groups are made of, and the "
        "groups that complete linkage finds at every number of groups.",
    )
    def layer_groups(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            build_layer_groups(study, store, context.log.info)
        metadata: dict[str, Any] = {}
        for variant in grouped_variants(study):
            groups = groups_of(study, store, variant, context.log.info)
            metadata[variant.id] = dg.MetadataValue.json([list(one) for one in groups])
        return dg.MaterializeResult(metadata=metadata)

    return layer_groups


def grouped_variants(study: Study) -> list[Variant]:
    return [one for one in study.variants if one.objective["kind"] == "layer_group"]


def identity_of(study: Study, sites: tuple[str, ...]) -> Identity:
    content = {
        "code": CODE_VERSIONS["layer_groups"],
        "activations": {site: study.harvested(site).hash for site in sites},
        "tokens": DISTANCE_TOKENS,
    }
    return Identity("layer_groups", study.model_name, content)


def build_layer_groups(study: Study, store: Store, log: Log) -> int:
    """Compare and cluster the sites of every layer-group variant, and land the rows.

    Returns how many sets of sites had to be compared.
    """
    together = list(dict.fromkeys(variant.places for variant in grouped_variants(study)))
    missing = 0
    for sites in together:
        identity = identity_of(study, sites)
        if not store.artifacts.exists(identity):
            missing += 1
            cluster(study, store, sites, log)
        # one set of sites per experiment is the rule; a second one lands beside it
        place = EVERYTHING if len(together) == 1 else "+".join(sites)
        if not store.has_landed(study, "layer_groups", place, EVERYTHING, identity):
            store.land(study, "layer_groups", place, None, identity, TABLES)
    return missing


def cluster(study: Study, store: Store, sites: tuple[str, ...], log: Log) -> None:
    from sae_lib.activations.layer_groups import angular_distances, layer_groups
    from sae_lib.activations.store import ActivationStore, JoinedStore

    harvest_sites(study, store, sites, log)
    stores = [ActivationStore.open(store.artifacts.path(study.harvested(one))) for one in sites]
    log(f"comparing {len(sites)} sites")
    found = layer_groups(angular_distances(JoinedStore(stores), sites, tokens=DISTANCE_TOKENS))
    matrix = found.distances.matrix
    distances = [
        {
            "site_a": a,
            "site_b": b,
            "distance": float(matrix[i, j]),
            "num_tokens": found.distances.num_rows,
        }
        for i, a in enumerate(sites)
        for j, b in enumerate(sites)
        if i < j
    ]
    groups = [
        {"num_groups": number, "group": index, "member": site, "amad": grouping.amad}
        for number, grouping in enumerate(found.groupings, start=1)
        for index, members in enumerate(grouping.groups)
        for site in members
    ]
    parents = {f"activations {one}": study.harvested(one).hash for one in sites}
    with store.artifacts.build(identity_of(study, sites), parents=parents) as space:
        save_rows(space.path / "site_distances.parquet", "site_distances", distances)
        save_rows(space.path / "layer_groups.parquet", "layer_groups", groups)
        linkage = json.dumps({"sites": sites, "linkage": found.linkage.tolist()})
        (space.path / "linkage.json").write_text(linkage, "utf-8")
        space.facts["groupings"] = [[list(g) for g in one.groups] for one in found.groupings]


def groups_of(study: Study, store: Store, variant: Variant, log: Log) -> list[tuple[str, ...]]:
    """The groups of one variant: as the experiment says, or as clustering finds them."""
    asked = study.objective(variant).groups
    if not isinstance(asked, int):
        return [tuple(one) for one in asked]
    if asked == 1:
        return [variant.places]
    identity = identity_of(study, variant.places)
    if not store.artifacts.exists(identity):
        cluster(study, store, variant.places, log)
    found = store.artifacts.manifest(identity)["facts"]["groupings"]
    return [tuple(one) for one in found[asked - 1]]
