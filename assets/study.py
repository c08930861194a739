"""A study: one experiment file, resolved, and the identity of everything it asks for.

Identities need only configs and fingerprints, so the whole plan of an experiment - what exists,
what is missing - is known before anything is computed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sae_lib.activations.corpus import CorpusConfig, corpus_fingerprint
from sae_lib.artifacts import ArtifactStore, Identity
from sae_lib.config import Config
from sae_lib.models.config import ModelConfig
from sae_lib.models.fingerprint import fingerprint
from sae_lib.models.inspect import ModelInfo, inspect_model
from sae_lib.models.places import Place
from sae_lib.training.config import ResolvedTrain, TrainConfig

CODE_VERSIONS = {
    "tokens": 1,
    "activations": 1,
    "sae": 3,
    "import": 1,
    "metrics": 1,
    "explanations": 2,
    "applications": 3,
    "frontier": 1,
    "claims": 1,
    "layer_groups": 1,
    "selections": 1,
}
"""Version of what each stage computes; raise one and everything of that stage is rebuilt."""


TOGETHER = "together"
"""Part of the metrics that share one pass over the evaluation tokens."""


class ActivationsConfig(Config):
    """How activations reach training."""

    store: Literal["disk", "stream"] = "disk"
    """Keep them on disk, or compute them from the model each time they are needed."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision in which they are kept (and, streamed, rounded to)."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts in one forward pass of the language model."""


class AutomationConfig(Config):
    """What happens by itself when the language model changes."""

    saes: Literal["keep", "retrain"] = "keep"
    """Whether SAEs stay, and are measured on the new model, or are trained anew on it."""

    reevaluate: str = "never"
    """When results follow the model: ``never`` (until asked), ``on_change``, or a cron line such
    as ``0 3 * * *``. It is the state in which the switch in the UI starts."""

    watch: bool = False
    """Whether the folder of a local model is watched from the start."""

    @field_validator("reevaluate")
    @classmethod
    def _is_known(cls, said: str) -> str:
        from dagster._utils.schedules import is_valid_cron_string

        if said not in ("never", "on_change") and not is_valid_cron_string(said):
            raise ValueError("say never, on_change, or a cron line such as '0 3 * * *'")
        return said


@dataclass(frozen=True)
class Variant:
    """One cell of the grid that an experiment spans: everything about an SAE but its site."""

    id: str
    """Partition key, such as ``topk-w2048-k32-s0``."""

    sae: Mapping[str, Any]
    """Config of the coder, without ``d_in``."""

    objective: Mapping[str, Any]
    """Config of the training strategy."""

    train: TrainConfig
    """The experiment's training settings with this entry's own on top."""

    places: tuple[str, ...] = ()
    """Where it is trained, of the study's sites. A layer group learns from all of them."""

    @property
    def is_pretrained(self) -> bool:
        """Whether it comes from files instead of a training."""
        return self.sae["kind"] == "pretrained"


@dataclass(frozen=True)
class Study:
    """A resolved experiment."""

    name: str
    description: str
    file: Path | None
    base: Path
    """Folder that relative paths in the file are relative to."""

    model: ModelConfig
    corpus: CorpusConfig
    activations: ActivationsConfig
    sites: tuple[str, ...]
    """Sites, and places of several (`sae_lib.models.places`), where SAEs are trained."""

    variants: tuple[Variant, ...]
    evaluate: tuple[Any, ...]
    explain: tuple[Any, ...]
    explain_tokens: int
    apply: tuple[Any, ...]
    automation: AutomationConfig = field(default_factory=AutomationConfig)
    owners: tuple[str, ...] = ()
    """Whom the graph names as owners: addresses, or team:NAME."""

    memo: Path | None = field(default=None, compare=False)
    """Where fingerprints of unchanged folders are remembered."""

    earlier: tuple[str, ...] = field(default=(), compare=False)
    """Fingerprints of the model that SAEs of this study were trained on, newest first."""

    exists: Callable[[Identity], bool] = field(default=lambda _: False, compare=False)
    """Whether the store has an artefact; decides which of several SAEs fills a cell."""

    of_fingerprint: str | None = field(default=None, compare=False)
    """Set for a study as it was on an earlier version of its model."""

    @cached_property
    def info(self) -> ModelInfo:
        return inspect_model(self.model, relative_to=self.base)

    @cached_property
    def model_fingerprint(self) -> str:
        if self.of_fingerprint is not None:
            return self.of_fingerprint
        return fingerprint(self.model, relative_to=self.base, memo=self.memo)

    @cached_property
    def before(self) -> "tuple[Study, ...]":
        """This study on the earlier versions of its model, newest first."""
        retrain = AutomationConfig(saes="retrain")
        return tuple(
            replace(self, of_fingerprint=one, automation=retrain, earlier=())
            for one in self.earlier
            if one != self.model_fingerprint
        )

    @property
    def anew(self) -> "Study":
        """This study with every SAE trained on the model as it is now."""
        return replace(self, automation=self.automation.but(saes="retrain"))

    @cached_property
    def _origins(self) -> "dict[tuple[str, str], Study]":
        return {}

    def origin(self, site: str, variant: Variant) -> "Study":
        """This study, on the version of the model that the SAE of the cell is trained on.

        Where SAEs are kept when the model changes, that is the newest version of which there is
        such an SAE; the present one where there is none, and for SAEs that come from files.
        """
        if self.automation.saes == "retrain" or not self.before or variant.is_pretrained:
            return self
        cell = (site, variant.id)
        if cell not in self._origins:
            found = (one for one in (self, *self.before) if self.exists(one.own_sae(site, variant)))
            if (first := next(found, None)) is None:
                return self  # it will be trained, on the present model
            self._origins[cell] = first
        return self._origins[cell]

    @property
    def model_name(self) -> str:
        """The model as an asset key part: short, and free of path separators."""
        return model_name(self.model)

    def variant(self, variant_id: str) -> Variant:
        return next(variant for variant in self.variants if variant.id == variant_id)

    @cached_property
    def tokens(self) -> Identity:
        content = {
            "code": CODE_VERSIONS["tokens"],
            "corpus": self.corpus.model_dump(exclude={"id"}),
            "text": corpus_fingerprint(self.corpus, self.base),
            "model": self.model_fingerprint,
        }
        return Identity("tokens", slug(Path(self.corpus.id).name), content)

    def harvested(self, site: str) -> Identity:
        content = {
            "code": CODE_VERSIONS["activations"],
            "tokens": self.tokens.hash,
            "model": self.model_fingerprint,
            "model_dtype": self.model.dtype,
            "site": site,
            "dtype": self.activations.dtype,
            "batch_contexts": self.activations.batch_contexts,
        }
        return Identity("activations", f"{self.model_name}-{slug(site)}", content)

    def sae_config(self, variant: Variant, site: str) -> Any:
        """The description of ``variant`` at ``site``, with the widths that follow from it."""
        from sae_lib.interop.pretrained import PretrainedConfig
        from sae_lib.saes import VARIANTS

        if variant.is_pretrained:
            return PretrainedConfig.model_validate({**variant.sae, "d_in": self.width(site)})
        config, place = VARIANTS[variant.sae["kind"]], Place.parse(site)
        follows: dict[str, int] = {"d_in": self.width(site)}
        if "d_out" in config.model_fields:
            follows["d_out"] = sum(self._widths[one] for one in place.writes)
        if "num_sources" in config.model_fields:
            follows["num_sources"] = len(place.reads)
        return config.model_validate({**variant.sae, **follows})

    def objective(self, variant: Variant) -> Any:
        """The description of how ``variant`` is trained."""
        from sae_lib.training.objectives import OBJECTIVES

        return OBJECTIVES[variant.objective["kind"]].model_validate(variant.objective)

    def resolved_train(self, variant: Variant, site: str) -> ResolvedTrain:
        from sae_lib.training.config import resolve

        return resolve(variant.train, self.sae_config(variant, site))

    def general(self, variant: Variant) -> Variant | None:
        """The SAE that ``variant`` starts from: itself, trained on all data; None: on none."""
        if variant.objective.get("start") != "general":
            return None
        return replace(variant, id=f"general of {variant.id}", objective={"kind": "plain"})

    def encoder_fingerprint(self, variant: Variant) -> str | None:
        """Of the model that embeds texts for a specialised SAE; None for the study's own."""
        encoder = variant.objective.get("encoder")
        if encoder is None:
            return None
        return fingerprint(ModelConfig(id=encoder), relative_to=self.base, memo=self.memo)

    def width(self, site: str) -> int:
        """How many numbers are read at ``site``, which may be a place of several."""
        return sum(self._widths[one] for one in Place.parse(site).reads)

    def _site_width(self, site: str) -> int:
        """Width of the activations at ``site``; loads the model's structure for ``module:``."""
        from sae_lib.models.sites import site_width

        known = site_width(self.info, site)
        if known is not None:
            return known
        from sae_lib.models.language_model import load_model

        return load_model(self.model, relative_to=self.base).width(site)

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {site: self._site_width(site) for site in self.primitive_sites()}

    def primitive_sites(self) -> tuple[str, ...]:
        """Every single site that a place of the study consists of, in order."""
        return tuple(dict.fromkeys(one for site in self.sites for one in Place.parse(site).sites))

    def reads(self, site: str, variant: Variant) -> tuple[str, ...]:
        """Single sites whose activations the SAE of this cell learns from."""
        places = variant.places if variant.objective["kind"] == "layer_group" else (site,)
        return tuple(dict.fromkeys(one for place in places for one in Place.parse(place).sites))

    def sae(self, site: str, variant: Variant) -> Identity:
        """The SAE that fills a cell; see `origin` for which of several."""
        return self.origin(site, variant).own_sae(site, variant)

    def own_sae(self, site: str, variant: Variant) -> Identity:
        """The SAE of a cell, trained on exactly this version of the model."""
        if variant.is_pretrained:
            return self._imported(site, variant)
        content = {
            "code": CODE_VERSIONS["sae"],
            "place": site,
            "activations": {one: self.harvested(one).hash for one in self.reads(site, variant)},
            "store": self.activations.store,
            "sae": self.sae_config(variant, site).model_dump(mode="json"),
            "objective": dict(variant.objective),
            "train": self.resolved_train(variant, site).model_dump(
                mode="json", exclude={"checkpoint_every_seconds", "curve_points", "devices"}
            ),
        }
        if self.objective(variant).files():
            content["data"] = [
                hashlib.sha256((self.base / file).read_bytes()).hexdigest()[:16]
                for file in self.objective(variant).files()
            ]
        if variant.objective["kind"] == "layer_group":
            content["layer_groups"] = CODE_VERSIONS["layer_groups"]
        if variant.objective.get("retrieve", "none") != "none":
            content["selections"] = CODE_VERSIONS["selections"]
            content["encoder"] = self.encoder_fingerprint(variant)
        general = self.general(variant)
        if general is not None:
            content["start"] = self.own_sae(site, general).hash
        return Identity("sae", f"{slug(site)}-{slug(variant.id)}", content)

    def _imported(self, site: str, variant: Variant) -> Identity:
        """Of an SAE from files: what they hold, wherever they lie, and where it reads."""
        from sae_lib.interop.pretrained import files_fingerprint

        config = self.sae_config(variant, site)
        content = {
            "code": CODE_VERSIONS["import"],
            "place": site,
            "format": config.format,
            "norm_factor": config.norm_factor,
            "files": files_fingerprint(config, self.base),
        }
        return Identity("sae", f"{slug(site)}-{slug(variant.id)}", content)

    def measured(self, stage: str, site: str, variant: Variant) -> Identity:
        """Rows of ``stage`` (metrics, explanations or applications) for one SAE."""
        if stage == "metrics":
            parts = {
                name: self.metric_part(metrics, site, variant).hash
                for name, metrics in self.metric_parts().items()
            }
            name = f"{slug(site)}-{slug(variant.id)}"
            return Identity(stage, name, {"parts": parts})
        asked = {"explanations": self.explain, "applications": self.apply}
        content = {
            "code": CODE_VERSIONS[stage],
            "sae": self.sae(site, variant).hash,
            "model": self.model_fingerprint,
            "tokens": self.tokens.hash,
            "asked": [config.model_dump(mode="json") for config in asked[stage]],
        }
        if stage == "explanations":
            content["explain_tokens"] = self.explain_tokens
            asked_here = [
                one.chat.model
                for one in self.explain
                if getattr(getattr(one, "chat", None), "kind", None) == "local"
            ]
            if asked_here:
                content["models"] = [
                    fingerprint(one, relative_to=self.base, memo=self.memo) for one in asked_here
                ]
        if stage == "applications":
            content["data"] = [self._data_fingerprint(config) for config in self.apply]
        return Identity(stage, f"{slug(site)}-{slug(variant.id)}", content)

    def metric_parts(self) -> dict[str, tuple[Any, ...]]:
        """Metrics that are computed together, by name of the part.

        Those that share the pass over the evaluation tokens are one part, a metric that puts SAEs
        to a task is one of its own; so asking for another computes that one alone. Metrics that
        compare SAEs with one another are in none (`grid_metrics`).
        """
        from sae_lib.evaluate import TaskMetric

        grid = self.grid_metrics()
        tasks = [metric for metric in self.evaluate if isinstance(metric, TaskMetric)]
        together = tuple(m for m in self.evaluate if m not in tasks and m not in grid)
        alone = {metric.name: (metric,) for metric in tasks}
        return {TOGETHER: together, **alone} if together else dict(alone)

    def grid_metrics(self) -> tuple[Any, ...]:
        """Metrics that compare the SAEs of a site with one another."""
        from sae_lib.evaluate import GridMetric

        return tuple(metric for metric in self.evaluate if isinstance(metric, GridMetric))

    def metric_part(self, metrics: Sequence[Any], site: str, variant: Variant) -> Identity:
        """What ``metrics``, one part of them, find for one SAE."""
        content: dict[str, Any] = {
            "code": [CODE_VERSIONS["metrics"], *(getattr(m, "code", 0) for m in metrics)],
            "sae": self.sae(site, variant).hash,
            "model": self.model_fingerprint,
            "tokens": self.tokens.hash,
            "asked": [metric.model_dump(mode="json") for metric in metrics],
        }
        task = metrics[0]
        if len(metrics) == 1 and hasattr(task, "files"):
            content["data"] = [
                hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in task.files(self.base)
            ]
            content["models"] = [
                fingerprint(ModelConfig(id=one), relative_to=self.base, memo=self.memo)
                for one in task.models()
            ]
        name = f"{metrics[0].name}-{slug(site)}-{slug(variant.id)}"
        return Identity("measurements", name, content)

    def _data_fingerprint(self, config: Any) -> list[str]:
        """Content of the labelled files that an application reads."""
        files = [self.base / getattr(task, "id", task) for task in getattr(config, "tasks", ())]
        return [
            hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files if file.is_file()
        ]

    @cached_property
    def frontier(self) -> Identity:
        cells = [self.measured("metrics", site, variant).hash for site, variant in self.cells()]
        content: dict[str, Any] = {"code": CODE_VERSIONS["frontier"], "cells": sorted(cells)}
        if self.grid_metrics():
            content["grid"] = [
                {"code": metric.code, "asked": metric.model_dump(mode="json")}
                for metric in self.grid_metrics()
            ]
            content["saes"] = sorted(self.sae(site, variant).hash for site, variant in self.cells())
        return Identity("frontier", self.name, content)

    def asked(self) -> dict[str, Any]:
        """The experiment with everything that was left open filled in, as a JSON object."""
        return {
            "name": self.name,
            "model": {**self.model.model_dump(), "fingerprint": self.model_fingerprint},
            "corpus": self.corpus.model_dump(),
            "activations": self.activations.model_dump(),
            "sites": {site: self.width(site) for site in self.sites},
            "saes": [
                {
                    "variant": variant.id,
                    "sae": dict(variant.sae),
                    "objective": dict(variant.objective),
                    "sites": list(variant.places),
                    "train": self.resolved_train(variant, variant.places[0]).model_dump(
                        mode="json"
                    ),
                }
                for variant in self.variants
            ],
            "evaluate": [config.model_dump(mode="json") for config in self.evaluate],
            "explain": [config.model_dump(mode="json") for config in self.explain],
            "explain_tokens": self.explain_tokens,
            "apply": [config.model_dump(mode="json") for config in self.apply],
        }

    def cells(self) -> list[tuple[str, Variant]]:
        """Every (site, variant) of the grid."""
        return [
            (site, variant)
            for site in self.sites
            for variant in self.variants
            if site in variant.places
        ]

    def missing(self, store: ArtifactStore, stage: str) -> list[tuple[str, Variant]]:
        """Cells whose artefact of ``stage`` (sae, metrics, ...) does not exist yet."""
        return [
            (site, variant)
            for site, variant in self.cells()
            if not store.exists(self.cell(stage, site, variant))
        ]

    def cell(self, stage: str, site: str, variant: Variant) -> Identity:
        if stage == "sae":
            return self.sae(site, variant)
        return self.measured(stage, site, variant)


def slug(text: str) -> str:
    """``text`` as part of a file name: letters, digits, dot, dash and underscore."""
    kept = [c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text]
    return "".join(kept).lstrip(".")[:80] or "_"


def model_name(model: ModelConfig) -> str:
    """Last part of the model's id, with its revision: what people call it, unless they say."""
    if model.name is not None:
        return model.name
    name = slug(Path(model.id).name)
    return f"{name}@{slug(model.revision)}" if model.revision else name


def by_site(cells: Sequence[tuple[str, Variant]]) -> dict[str, list[Variant]]:
    """Cells grouped by site, in order."""
    groups: dict[str, list[Variant]] = {}
    for site, variant in cells:
        groups.setdefault(site, []).append(variant)
    return groups
