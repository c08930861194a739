"""The JSON schema of experiment files, for editors that complete and check them."""

from typing import Any

from pydantic import BaseModel

from sae_lib.registry import Registry
from sae_lib.saes.presets import PRESETS
from sae_workflows.experiment import ExperimentFile
from sae_workflows.listing import registries


def experiment_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of an experiment file, every registered member included."""
    schema = ExperimentFile.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    found = registries()
    objective = _named("kind", found["objectives"], definitions)
    train = _adopt(_train(), definitions)
    train.pop("required", None)
    saes = [
        _sae(_adopt(config, definitions), objective, train) for config in found["variants"].values()
    ]
    properties = schema["properties"]
    properties["saes"]["items"] = {"oneOf": [*saes, *_presets(saes)]}
    properties["train"] = {**train, "description": properties["train"]["description"]}
    for stage, (tag, what) in {
        "evaluate": ("name", "metrics"),
        "explain": ("method", "explainers"),
        "apply": ("kind", "applications"),
    }.items():
        properties[stage]["items"] = _named(tag, found[what], definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sae-workflows experiment",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _train() -> type[BaseModel]:
    from sae_lib.training.config import TrainConfig

    return TrainConfig


def _adopt(config: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of ``config``, its own definitions moved to the top."""
    schema = config.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema


def _named(tag: str, registry: Registry[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A name alone, or a mapping with the name under ``tag`` and settings."""
    members = []
    for name, config in registry.items():
        member = _adopt(config, definitions)
        member["properties"][tag] = {"const": name}
        member["required"] = sorted({tag, *member.get("required", [])})
        members.append(member)
    return {"anyOf": [{"enum": list(registry)}, *members]}


def _sae(
    schema: dict[str, Any], objective: dict[str, Any], train: dict[str, Any]
) -> dict[str, Any]:
    """A variant as an entry: no ``d_in``, and a list wherever a value may span the grid."""
    kind = schema["properties"]["kind"]
    properties = {
        key: value if key == "kind" else _value_or_list(value)
        for key, value in schema["properties"].items()
        if key != "d_in"
    }
    properties["kind"] = {"const": kind.get("const", kind.get("default"))}
    properties["objective"], properties["train"] = objective, train
    properties["sites"] = {
        "description": "Sites of the study at which it is trained; all that fit by default.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    required = [key for key in schema.get("required", []) if key != "d_in"]
    return {**schema, "properties": properties, "required": sorted({"kind", *required})}


def _presets(saes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries that name a preset: its variant without ``kind``."""
    by_kind = {entry["properties"]["kind"]["const"]: entry for entry in saes}
    found = []
    for name, preset in PRESETS.items():
        entry = by_kind[str(preset.sae["kind"])]
        properties = {key: value for key, value in entry["properties"].items() if key != "kind"}
        required = [key for key in entry["required"] if key != "kind"]
        found.append(
            {
                **entry,
                "title": name,
                "description": preset.summary,
                "properties": {**properties, "preset": {"const": name}},
                "required": sorted(["preset", *required]),
            }
        )
    return found


def _value_or_list(value: dict[str, Any]) -> dict[str, Any]:
    about = {key: value[key] for key in ("description", "default", "title") if key in value}
    bare = {key: part for key, part in value.items() if key not in about}
    return {**about, "anyOf": [bare, {"type": "array", "items": bare, "minItems": 1}]}
