"""Which versions of its model the SAEs of an experiment were trained on.

An artefact's name holds a hash of the model it was made from, so from a changed model one cannot
tell the names of the SAEs that were trained before. Each home therefore keeps, per experiment and
model, the fingerprints that SAEs were trained on; a study that keeps its SAEs finds them by these.
"""

import json
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from assets.study import Study
from sae_lib.artifacts import ArtifactStore, write_atomically
from sae_lib.errors import CorruptData
from sae_lib.remote import remote_from_env

FORMAT_VERSION = 1


def lineage_file(home: Path, experiment: str) -> Path:
    return home / "lineage" / f"{experiment}.json"


def at_home(study: Study, home: Path, artifacts: ArtifactStore | None = None) -> Study:
    """``study`` knowing what ``home`` holds of it: earlier versions of its model, and its SAEs."""
    artifacts = artifacts or ArtifactStore(home, remote_from_env())
    file = lineage_file(home, study.name)
    return replace(study, earlier=tuple(_read(file, study.model.id)), exists=artifacts.exists)


def remember_model(study: Study, home: Path) -> None:
    """Keep the fingerprint of the model if SAEs of ``study`` are trained on it.

    The newest stands first. Raises `CorruptData` where the file cannot be read.
    """
    is_trained = any(
        not variant.is_pretrained and study.exists(study.own_sae(site, variant))
        for site, variant in study.cells()
    )
    if not is_trained:
        return
    file = lineage_file(home, study.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(file.with_name(f".{file.name}.lock"))):
        known = _read(file, study.model.id)
        if known[:1] == [study.model_fingerprint]:
            return
        kept = [one for one in known if one != study.model_fingerprint]
        content = {
            "format_version": FORMAT_VERSION,
            "model": study.model.id,
            "fingerprints": [study.model_fingerprint, *kept],
        }
        write_atomically(file, json.dumps(content, indent=2) + "\n")


def trained_elsewhere(study: Study) -> dict[str, str]:
    """Cells whose SAE was trained on an earlier version of the model, and on which."""
    return {
        f"{site}|{variant.id}": origin.model_fingerprint
        for site, variant in study.cells()
        if (origin := study.origin(site, variant)) is not study
    }


def _read(file: Path, model: str) -> list[str]:
    """Fingerprints, newest first; none when the experiment had another model."""
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {content['format_version']!r}")
        return [str(one) for one in content["fingerprints"]] if content["model"] == model else []
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(
            file,
            f"it does not hold fingerprints ({error}).",
            "Delete it; SAEs of earlier versions of the model are then trained anew.",
        ) from error
