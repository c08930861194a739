"""Entries ``{kind: pretrained, ...}`` of an experiment file: SAEs that were trained elsewhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assets.study import Variant, slug
from sae_lib.errors import BadInput, SaeError, nearest
from sae_lib.interop.pretrained import KIND, PretrainedConfig, shape_of
from sae_lib.models.inspect import ModelInfo
from sae_lib.models.places import Place
from sae_lib.models.sites import site_width
from sae_lib.training.config import TrainConfig
from sae_workflows.reading import Path_, Reader

OF_AN_ENTRY = {"sites"}
NOT_TRAINED = ("train", "objective", "preset", "seed", "d_in")


def pretrained_variants(
    reader: Reader,
    entry: Mapping[str, Any],
    sites: tuple[str, ...],
    info: ModelInfo,
    base: Path,
    train: TrainConfig,
    path: Path_,
) -> Iterator[Variant]:
    """The one variant of an entry; its files are looked into where they are local."""
    for key in NOT_TRAINED:
        if key in entry:
            problem = f"a pretrained SAE is not trained here; leave {key} out."
            raise reader.fault(problem, (*path, key), entry[key])
    fields = {key: value for key, value in entry.items() if key not in OF_AN_ENTRY}
    # checks names and values before any file is opened
    asked = {"d_in": 1, "d_sae": 1, **fields}
    reader.parse(PretrainedConfig, asked, path)
    try:
        shape = shape_of(fields, base)
    except SaeError as error:
        key = error.key if isinstance(error, BadInput) and error.key in fields else "path"
        problem = error.problem if isinstance(error, BadInput) else str(error)
        raise reader.fault(problem, (*path, key), fields.get(key)) from error
    if shape is None and "d_sae" not in fields:
        raise reader.fault("say d_sae of an SAE that is on the hub.", path)
    if shape is not None and fields.get("d_sae", shape[1]) != shape[1]:
        problem = f"the SAE has {shape[1]} latents."
        raise reader.fault(problem, (*path, "d_sae"), fields["d_sae"])
    d_sae = shape[1] if shape is not None else fields["d_sae"]
    places = _places(reader, entry, sites, path)
    for site in places:
        width = site_width(info, site)
        if shape is not None and width is not None and width != shape[0]:
            problem = f"the SAE reads {shape[0]} numbers, and {site} is {width} wide."
            raise reader.fault(problem, (*path, "path"), fields["path"])
    inside = Path(fields.get("folder") or fields["path"])
    name = str(fields.get("name") or inside.name)
    yield Variant(
        id=f"{slug(name)}-w{d_sae}-s0",
        sae={**fields, "kind": KIND, "d_sae": d_sae},
        objective={"kind": "plain"},
        train=train,
        places=places,
    )


def _places(
    reader: Reader, entry: Mapping[str, Any], sites: tuple[str, ...], path: Path_
) -> tuple[str, ...]:
    """Where it reads: its own ``sites``, or the single sites of the study."""
    single = tuple(site for site in sites if Place.parse(site).is_single)
    own = entry.get("sites", list(single))
    own = [own] if isinstance(own, str) else own
    for site in own:
        if site not in single:
            problem = (
                "a pretrained SAE reads one of the single sites of the study; there are "
                f"{', '.join(single) or 'none'}.{nearest(str(site), single)}"
            )
            raise reader.fault(problem, (*path, "sites"), site)
    if not own:
        raise reader.fault("the study has no single site for it.", path)
    return tuple(own)
