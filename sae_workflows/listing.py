"""What `sae list` and `sae show` print: rows from the registries and the store."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import UnknownName
from sae_lib.registry import Registry
from sae_workflows.home import outlines, study_at

Row = dict[str, Any]


def rows(what: str, home: Path) -> list[Row]:
    """Rows of one list, each with the same columns."""
    listers: dict[str, Callable[[Path], list[Row]]] = {
        "variants": lambda _: _variants(),
        "presets": lambda _: _presets(),
        "objectives": lambda _: _members("objectives"),
        "metrics": lambda _: _metrics(),
        "explainers": lambda _: _members("explainers"),
        "applications": lambda _: _members("applications"),
        "formats": lambda _: _formats(),
        "models": lambda _: _models(),
        "experiments": _experiments,
        "checks": _checks,
        "costs": lambda _: _costs(),
        "saes": _saes,
    }
    return listers[what](home)


def registries() -> dict[str, Registry[Any]]:
    from sae_lib.apply import APPLICATIONS
    from sae_lib.evaluate import METRICS
    from sae_lib.explain import EXPLAINERS
    from sae_lib.saes import VARIANTS
    from sae_lib.training.objectives import OBJECTIVES

    return {
        "variants": VARIANTS,
        "objectives": OBJECTIVES,
        "metrics": METRICS,
        "explainers": EXPLAINERS,
        "applications": APPLICATIONS,
    }


def _members(what: str) -> list[Row]:
    return [
        {
            "name": name,
            "summary": member.summary,
            "dials": list(getattr(member, "dials", ())),
            "papers": [paper.cite for paper in member.papers],
        }
        for name, member in registries()[what].items()
    ]


def _variants() -> list[Row]:
    from sae_lib.saes import VARIANTS
    from sae_lib.training.survey import ROWS

    return [
        {
            "name": row.name,
            "kind": row.kind,
            "objective": row.objective,
            "in_survey_table": row.in_table,
            "summary": row.summary,
            "dials": list(VARIANTS[row.kind].dials),
            "entry": dict(row.entry),
            "papers": [paper.cite for paper in row.papers],
        }
        for row in ROWS
    ]


def _presets() -> list[Row]:
    from sae_lib.saes.presets import PRESETS

    return [
        {
            "name": name,
            "kind": preset.sae["kind"],
            "summary": preset.summary,
            "sae": dict(preset.sae),
            "train": dict(preset.train),
            "papers": [paper.cite for paper in preset.papers],
        }
        for name, preset in PRESETS.items()
    ]


def _metrics() -> list[Row]:
    from sae_lib.evaluate.base import role_of

    return [
        {
            "metric": name,
            "value": definition.name,
            "definition": definition.definition,
            "version": definition.version,
            "meaning": definition.text,
            "better": definition.better,
            "role": role_of(definition),
            "needs": member.needs,
            "survey": list(member.survey),
        }
        for name, member in registries()["metrics"].items()
        for definition in member.definitions()
    ]


def _formats() -> list[Row]:
    from sae_lib.saes.files import FORMAT_VERSION

    return [
        {
            "name": "sae-workflows",
            "reads": True,
            "writes": True,
            "version": FORMAT_VERSION,
            "files": "sae.safetensors, sae.json",
        }
    ]


def _models() -> list[Row]:
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.inspect import bundled_models, inspect_model

    found = []
    for name in bundled_models():
        info = inspect_model(ModelConfig(id=name))
        found.append(
            {
                "name": name,
                "family": info.family,
                "layers": info.num_layers,
                "d_model": info.d_model,
                "vocabulary": info.vocab_size,
                "context": info.max_context,
            }
        )
    return found


def _experiments(home: Path) -> list[Row]:
    found, broken = outlines(home)
    readable = [
        {
            "name": one.name,
            "model": one.model,
            "sites": len(one.sites),
            "variants": len(one.variants),
            "saes": len(one.cells),
            "file": one.file,
            "problem": None,
        }
        for one in found
    ]
    unreadable = [
        {
            "name": Path(file).stem,
            "model": None,
            "sites": None,
            "variants": None,
            "saes": None,
            "file": file,
            "problem": reason,
        }
        for file, reason in broken.items()
    ]
    return readable + unreadable


def _checks(home: Path) -> list[Row]:
    from sae_workflows.definitions import build

    found, _ = outlines(home)
    definitions = build(found, home)
    graph = definitions.resolve_asset_graph()
    return [
        {
            "asset": key.asset_key.to_user_string(),
            "check": key.name,
            "description": graph.get(key).description,
        }
        for key in sorted(graph.asset_check_keys, key=str)
    ]


def _costs() -> list[Row]:
    from sae_lib.llm.account import spent
    from sae_lib.llm.cache import default_folder

    return spent(default_folder())


def _saes(home: Path) -> list[Row]:
    from sae_lib.saes.files import DESCRIPTION

    def config(manifest: Mapping[str, Any]) -> Row:
        # of one that comes from files, the manifest knows these and not what is in them
        return json.loads((Path(manifest["path"]) / DESCRIPTION).read_text("utf-8"))["config"]

    return [
        {
            "sae": manifest["hash"],
            "name": manifest["name"],
            "kind": config(manifest)["kind"],
            "site": manifest["facts"]["site"],
            "model": manifest["facts"]["model"]["id"],
            "d_sae": config(manifest)["d_sae"],
            "l0": manifest["facts"]["final"].get("l0"),
            "fvu": manifest["facts"]["final"].get("fvu"),
            "status": manifest["facts"]["status"],
            "created_at": manifest["created_at"],
        }
        for manifest in ArtifactStore(home).manifests("sae")
    ]


def one(name: str, home: Path) -> Mapping[str, Any]:
    """Everything known about the thing called ``name``."""
    for manifest in ArtifactStore(home).manifests("sae"):
        if name in (manifest["hash"], manifest["name"], Path(manifest["path"]).name):
            return manifest
    found, _ = outlines(home)
    for outline in found:
        if outline.name == name:
            return _experiment(Path(outline.file), home)
    for what, registry in registries().items():
        if name in registry:
            return _member(what.removesuffix("s"), name, registry[name])
    known = [manifest["name"] for manifest in ArtifactStore(home).manifests("sae")]
    known += [outline.name for outline in found]
    known += [member for registry in registries().values() for member in registry]
    raise UnknownName("SAE, experiment or member", name, known)


def _experiment(file: Path, home: Path) -> Row:
    study = study_at(home, file)
    return {
        "description": study.description,
        "file": str(file),
        **study.asked(),
        "trained": len(study.cells()) - len(study.missing(ArtifactStore(home), "sae")),
    }


def _member(what: str, name: str, member: Any) -> Row:
    import inspect

    module = inspect.getmodule(member)
    return {
        "name": name,
        "what": what,
        "summary": member.summary,
        "about": inspect.getdoc(module) if module else "",
        "papers": [paper._asdict() for paper in member.papers],
        "fields": {
            key: {
                "default": None if field.is_required() else field.default,
                "required": field.is_required(),
                "meaning": field.description,
            }
            for key, field in member.model_fields.items()
        },
    }
