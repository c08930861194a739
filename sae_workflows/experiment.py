"""An experiment file: parsed once, at the border, into a frozen `Study`.

Whatever is wrong is said before any compute starts, with file, line, key, value and what would
be right.
"""

import itertools
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from assets.study import ActivationsConfig, AutomationConfig, Study, Variant, slug
from sae_lib.activations.corpus import CorpusConfig, check_corpus
from sae_lib.activations.tokens import check_tokens
from sae_lib.apply import APPLICATIONS
from sae_lib.config import Config
from sae_lib.errors import BadInput, MissingFile, SaeError, nearest
from sae_lib.evaluate import METRICS
from sae_lib.explain import EXPLAINERS
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import ModelInfo, inspect_model
from sae_lib.models.places import Place
from sae_lib.models.sites import check_site
from sae_lib.registry import Registry
from sae_lib.saes import VARIANTS, SaeConfig
from sae_lib.saes.presets import expand, preset_of
from sae_lib.training.config import TrainConfig
from sae_lib.training.distributed.rules import check_split
from sae_lib.training.objectives import OBJECTIVES, ObjectiveConfig
from sae_workflows._yaml import read_yaml
from sae_workflows.pretrained import KIND, pretrained_variants
from sae_workflows.reading import Path_, Reader

BUNDLED = Path(__file__).parent / "experiments"

Member = str | dict[str, Any]

OWNER = r"^(team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+)$"

RESERVED = ("models", "results", "world")
"""First parts of the keys of assets that belong to no experiment."""

OF_AN_ENTRY = ("objective", "train", "sites")
"""Keys of an SAE entry that are no settings of the architecture."""


class ExperimentFile(Config):
    """What an experiment file may say."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,60}$")
    """Name of the study: lower-case letters, digits, dash, underscore. Keys in the graph and in
    every result row."""

    description: str = ""
    """What the study asks, in a sentence; shown in the graph and on the report."""

    model: ModelConfig
    """The language model: bundled name, hub id (with revision), or local directory."""

    corpus: CorpusConfig
    """The text: bundled name, hub dataset, or local txt/jsonl/parquet."""

    sites: tuple[str, ...] = Field(min_length=1)
    """Where activations are read: ``resid_post.2``, ``mlp_out.0``, ``module:model.norm``, ...;
    several side by side (``resid_post.1+resid_post.2``, for crosscoders); or from one to another
    (``resid_mid.2>mlp_out.2``, for transcoders)."""

    saes: tuple[dict[str, Any], ...] = Field(min_length=1)
    """The SAEs: ``kind`` and its settings, or a ``preset``; ``objective``, ``train`` and ``sites``
    of an entry's own. A list in place of a value spans a grid; an SAE is trained at every site
    that its objective can be trained at."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Training settings for all SAEs; what is left out is derived and written into the result.
    ``tokens`` defaults to the tokens of the corpus."""

    activations: ActivationsConfig = ActivationsConfig()
    """How activations reach training."""

    evaluate: tuple[Member, ...] = ("reconstruction", "model_loss", "sparsity", "frontier")
    """Metrics, by name or as a mapping with their settings."""

    explain: tuple[Member, ...] = ()
    """Explanation methods."""

    explain_tokens: int = Field(default=400_000, gt=0)
    """Training tokens that explanations look for examples in; fewer where there are fewer."""

    apply: tuple[Member, ...] = ()
    """Applications."""

    automation: AutomationConfig = AutomationConfig()
    """What happens by itself when the language model changes."""

    owners: tuple[Annotated[str, Field(pattern=OWNER)], ...] = ()
    """Whom the graph names as owners: addresses (``ada@example.org``) or ``team:NAME``."""


def load_experiment(path: Path, *, memo: Path | None = None) -> Study:
    """The study that the file describes, checked as far as is possible without compute.

    ``memo`` is a file in which fingerprints of unchanged model folders are remembered.
    """
    file = find_experiment(path)
    raw, node = read_yaml(file)
    reader = Reader(file, node)
    said: ExperimentFile = reader.parse(ExperimentFile, raw, ())
    if said.name in RESERVED:
        problem = f"{', '.join(RESERVED)} name other parts of the graph; choose another name."
        raise reader.fault(problem, ("name",), said.name)
    base = file.resolve().parent
    try:
        info = inspect_model(said.model, relative_to=base)
    except SaeError as error:
        raise _placed(reader, error, ("model", "id"), said.model.id) from error
    _check_sites(reader, said, info)
    try:
        check_corpus(said.corpus, base)
        check_tokens(said.corpus, info)
    except SaeError as error:
        raise _placed(reader, error, ("corpus", "id"), said.corpus.id) from error
    evaluate = _members(reader, METRICS, "name", said.evaluate, "evaluate")
    explain = _members(reader, EXPLAINERS, "method", said.explain, "explain")
    apply = _members(reader, APPLICATIONS, "kind", said.apply, "apply")
    for index, member in enumerate(apply):
        if "lm_head" in member.needs:
            _check_predicts(reader, member.kind, info, said.model.id, ("apply", index))
    return Study(
        name=said.name,
        description=said.description,
        file=file.resolve(),
        base=base,
        model=said.model,
        corpus=said.corpus,
        activations=said.activations,
        sites=tuple(said.sites),
        variants=tuple(_variants(reader, said, info)),
        evaluate=evaluate,
        explain=explain,
        explain_tokens=said.explain_tokens,
        apply=apply,
        automation=said.automation,
        owners=said.owners,
        memo=memo,
    )


def find_experiment(path: Path) -> Path:
    """``path`` itself, or the bundled experiment of that name."""
    if path.is_file():
        return path
    bundled = {file.stem: file for file in sorted(BUNDLED.rglob("*.yaml"))}
    if str(path) in bundled:
        return bundled[str(path)]
    siblings = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = nearest(path.name, siblings) or nearest(path.stem, bundled)
    raise MissingFile(
        f"there is no such file, and no bundled experiment of that name "
        f"({', '.join(bundled)}).{hint}",
        file=path,
    )


def _placed(reader: Reader, error: SaeError, path: Path_, value: object) -> BadInput:
    """``error`` from a lower floor, with the place in the experiment file."""
    if isinstance(error, BadInput):
        key = ("corpus", *error.key.split(".")) if error.key and path[0] == "corpus" else path
        key = tuple(part for index, part in enumerate(key) if index == 0 or part != "corpus")
        where = f"{error.file}: " if error.file is not None else ""
        return reader.fault(f"{where}{error.problem}", key, error.value or value)
    return reader.fault(str(error), path, value)


def _check_sites(reader: Reader, said: ExperimentFile, info: ModelInfo) -> None:
    for index, site in enumerate(said.sites):
        if site in said.sites[:index]:
            raise reader.fault("this site stands twice.", ("sites", index), site)
        try:
            for one in Place.parse(site).sites:
                check_site(info, one)
        except SaeError as error:
            problem = error.problem if isinstance(error, BadInput) else str(error)
            raise reader.fault(problem, ("sites", index), site) from error


def _members(
    reader: Reader, registry: Registry[Any], tag: str, said: Sequence[Member], stage: str
) -> tuple[Any, ...]:
    """Members of a registry, given by name or as a mapping that holds the name under ``tag``."""
    members: list[Any] = []
    for index, one in enumerate(said):
        raw: Mapping[str, Any] = {tag: one} if isinstance(one, str) else one
        name = raw.get(tag)
        if not isinstance(name, str):
            problem = f"say which one under {tag!r}. Known: {', '.join(registry)}."
            raise reader.fault(problem, (stage, index))
        if name not in registry:
            problem = (
                f"no {registry.what} is called {name!r}. Known: {', '.join(registry)}."
                f"{nearest(name, registry)}"
            )
            raise reader.fault(problem, (stage, index), name)
        path: Path_ = (stage, index)
        member = reader.parse(registry[name], raw, path)
        if member in members:
            raise reader.fault("this stands twice.", path, name)
        members.append(member)
    return tuple(members)


def _check_predicts(reader: Reader, what: str, info: ModelInfo, model: str, path: Path_) -> None:
    """Refuse what has no meaning on a model that predicts no tokens."""
    if not info.has_lm_head:
        problem = (
            f"{what} needs a model that predicts tokens, and {model} ({info.model_type}) has no "
            "language-model head. Leave it out, or name a causal model."
        )
        raise reader.fault(problem, path)


def _variants(reader: Reader, said: ExperimentFile, info: ModelInfo) -> Iterator[Variant]:
    base_train = {"tokens": said.corpus.tokens, **said.train}
    shared: TrainConfig = reader.parse(TrainConfig, base_train, ("train",))
    seen: dict[str, int] = {}
    for index, entry in enumerate(said.saes):
        if entry.get("kind") == KIND:
            variants = pretrained_variants(
                reader,
                entry,
                said.sites,
                info,
                reader.file.resolve().parent,
                shared,
                ("saes", index),
            )
        else:
            variants = _grid(reader, said, entry, shared, info, index)
        for variant in variants:
            if variant.id in seen:
                problem = f"{variant.id} stands in saes[{seen[variant.id]}] already."
                raise reader.fault(problem, ("saes", index))
            seen[variant.id] = index
            if entry.get("kind") != KIND:
                _check_devices(reader, said, variant, index)
            yield variant


def _check_devices(reader: Reader, said: ExperimentFile, variant: Variant, index: int) -> None:
    """Refuse what several devices would not train as one does."""
    own = said.saes[index].get("train", {})
    path = ("saes", index, "train", "devices") if "devices" in own else ("train", "devices")
    if variant.train.devices.count > 1 and said.activations.store == "stream":
        problem = (
            "several devices read activations from the disk, and here they are streamed; "
            "leave activations.store out, or train on one device."
        )
        raise reader.fault(problem, path, variant.train.devices.count)
    config = VARIANTS[variant.sae["kind"]]
    follows = _follows(config, variant.places[0])
    sae = config.model_validate({**variant.sae, **follows})
    objective = OBJECTIVES[variant.objective["kind"]].model_validate(variant.objective)
    try:
        check_split(variant.train, sae, objective)
    except BadInput as error:
        raise reader.fault(f"{variant.id}: {error.problem}", path, error.value) from error


def _grid(
    reader: Reader,
    said: ExperimentFile,
    entry: Mapping[str, Any],
    shared: TrainConfig,
    info: ModelInfo,
    index: int,
) -> Iterator[Variant]:
    path: Path_ = ("saes", index)
    written, entry = entry, _expanded(reader, entry, path)
    kind = entry.get("kind")
    if kind not in VARIANTS:
        known = f"Known: {', '.join([*VARIANTS, KIND])}."
        problem = f"say which variant under 'kind'. {known}"
        if kind is not None:
            problem = f"no SAE variant is called {kind!r}. {known}{nearest(str(kind), VARIANTS)}"
        raise reader.fault(problem, (*path, "kind") if kind is not None else path, kind)
    config = VARIANTS[str(kind)]
    objective = _objective(reader, entry.get("objective", "plain"), info, said.model.id, path)
    own = entry.get("train", {})
    if not isinstance(own, dict):
        raise reader.fault("give a mapping of training settings.", (*path, "train"), own)
    train = reader.parse(TrainConfig, {**shared.model_dump(), **own}, (*path, "train"))
    _check_pair(reader, objective, config.example(), path)
    places = _places(reader, said, entry, objective, info, path)
    # what a preset says is in its name, and devices are no part of what an SAE is
    said_of_training = written.get("train", {}) if "preset" in written else own
    distinct = {key: value for key, value in said_of_training.items() if key != "devices"}
    fields = {key: value for key, value in entry.items() if key not in OF_AN_ENTRY}
    if "d_in" in fields:
        problem = "the width of the activations follows from the site; leave d_in out."
        raise reader.fault(problem, (*path, "d_in"), fields["d_in"])
    axes = [_axis(reader, config, key, value, path) for key, value in fields.items()]
    for point in itertools.product(*axes):
        raw = dict(zip(fields, point, strict=True))
        sae = reader.parse(config, {**raw, **_follows(config, places[0])}, path)
        _check_pair(reader, objective, sae, path)
        yield Variant(
            id=_variant_id(
                written.get("preset", sae.kind),
                sae,
                fields.keys() & written.keys(),
                objective,
                distinct,
            ),
            # what follows from the width of a site is left open here
            sae={key: sae.model_dump()[key] for key in sorted({"kind", "d_sae", "seed", *fields})},
            objective=objective.model_dump(),
            train=train,
            places=places,
        )


def _check_pair(reader: Reader, objective: ObjectiveConfig, sae: SaeConfig, path: Path_) -> None:
    """Refuse a variant that the objective makes no sense for."""
    try:
        objective.check(sae)
    except SaeError as error:
        problem = error.problem if isinstance(error, BadInput) else str(error)
        raise reader.fault(problem, (*path, "objective")) from error


def _expanded(reader: Reader, entry: Mapping[str, Any], path: Path_) -> dict[str, Any]:
    """An entry with its preset's settings filled in."""
    own = {key: value for key, value in entry.items() if key != "preset"}
    if "preset" not in entry:
        return own
    name, train = str(entry["preset"]), own.get("train", {})
    if not isinstance(train, dict):
        raise reader.fault("give a mapping of training settings.", (*path, "train"), train)
    try:
        kind = preset_of(name).sae["kind"]
    except SaeError as error:
        raise reader.fault(str(error), (*path, "preset"), name) from error
    if own.get("kind", kind) != kind:
        problem = f"the preset {name} is a {kind}; leave kind out."
        raise reader.fault(problem, (*path, "kind"), own["kind"])
    return expand(name, own)


def _follows(config: type[SaeConfig], place: str) -> dict[str, int]:
    """What of an SAE follows from its place, for activations of one number each."""
    parsed = Place.parse(place)
    follows = {"d_in": len(parsed.reads)}
    if "d_out" in config.model_fields:
        follows["d_out"] = len(parsed.writes)
    if "num_sources" in config.model_fields:
        follows["num_sources"] = len(parsed.reads)
    return follows


TAKES = {
    "site": "single sites, such as resid_post.2",
    "several": "several sites side by side, such as resid_post.1+resid_post.2",
    "map": "from one site to another, such as resid_mid.2>mlp_out.2",
}


def _places(
    reader: Reader,
    said: ExperimentFile,
    entry: Mapping[str, Any],
    objective: ObjectiveConfig,
    info: ModelInfo,
    path: Path_,
) -> tuple[str, ...]:
    """Where an entry is trained: its own ``sites``, or those of the study that it can be."""
    own = entry.get("sites", list(said.sites))
    own = [own] if isinstance(own, str) else own
    places = []
    for site in own if isinstance(own, list) else []:
        if site not in said.sites:
            problem = (
                "an SAE is trained at sites of the study; add it to the file's sites. "
                f"There are {', '.join(said.sites)}.{nearest(str(site), said.sites)}"
            )
            raise reader.fault(problem, (*path, "sites"), site)
        place = Place.parse(site)
        form = "map" if place.is_map else "site" if place.is_single else "several"
        if form == objective.takes:
            places.append(site)
        elif "sites" in entry:
            problem = f"the objective {objective.kind} is trained at {TAKES[objective.takes]}."
            raise reader.fault(problem, (*path, "sites"), site)
    if not places:
        problem = (
            f"the objective {objective.kind} is trained at {TAKES[objective.takes]}, and there is "
            "no such place in sites."
        )
        raise reader.fault(problem, (*path, "sites") if "sites" in entry else path)
    try:
        objective.check_places(places, info.d_model)
    except BadInput as error:
        raise reader.fault(error.problem, (*path, "objective"), error.value) from error
    return tuple(places)


def _axis(
    reader: Reader, config: type[SaeConfig], key: str, value: object, path: Path_
) -> list[object]:
    """Values of one key in the grid: a list spans an axis unless the field itself is a list."""
    if not isinstance(value, list):
        return [value]
    field = config.model_fields.get(key)
    is_sequence = field is not None and _takes_a_sequence(field.annotation)
    if is_sequence and not any(isinstance(one, list) for one in value):
        return [value]
    if not value:
        raise reader.fault("an empty list spans no SAE; give at least one value.", (*path, key))
    return value


def _takes_a_sequence(annotation: object) -> bool:
    origins = (typing.get_origin(annotation), *map(typing.get_origin, typing.get_args(annotation)))
    return any(origin in (list, tuple) for origin in origins)


def _objective(
    reader: Reader, said: object, info: ModelInfo, model: str, path: Path_
) -> ObjectiveConfig:
    here = (*path, "objective")
    if isinstance(said, str):
        said = {"kind": said}
    if not isinstance(said, dict) or said.get("kind") not in OBJECTIVES:
        kind = said.get("kind") if isinstance(said, dict) else said
        problem = (
            f"no objective is called {kind!r}. Known: {', '.join(OBJECTIVES)}."
            f"{nearest(str(kind), OBJECTIVES)}"
        )
        raise reader.fault(problem, here, kind)
    objective = reader.parse(OBJECTIVES[said["kind"]], said, here)
    if objective.needs_model:
        _check_predicts(reader, f"the objective {objective.kind}", info, model, here)
    return objective


def _variant_id(
    name: str,
    sae: SaeConfig,
    given: Collection[str],
    objective: ObjectiveConfig,
    train: Mapping[str, Any],
) -> str:
    """Readable and unique: kind, width, dials, whatever differs from the defaults, seed."""
    values = sae.model_dump()
    parts = [name, f"w{sae.d_sae}"]
    parts += [
        f"{_short(dial)}{_text(values[dial])}" for dial in sae.dials if values[dial] is not None
    ]
    parts += _differences(sae, set(given) - {"kind", "d_sae", "seed", *sae.dials})
    if objective.kind != "plain":
        parts += [
            slug(objective.kind),
            *_differences(objective, set(type(objective).model_fields) - {"kind"}),
        ]
    parts += [f"{_short(key)}{_text(train[key])}" for key in sorted(train)]
    return "-".join([*parts, f"s{sae.seed}"])


def _differences(config: Config, names: Collection[str]) -> list[str]:
    return [
        f"{_short(name)}{_text(getattr(config, name))}"
        for name, field in type(config).model_fields.items()
        if name in names and getattr(config, name) != field.default
    ]


def _short(name: str) -> str:
    return name.replace("_", "")


def _text(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return slug(text)
