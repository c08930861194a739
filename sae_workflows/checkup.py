"""What `sae doctor` looks at."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import SaeError
from sae_workflows.home import outlines

MINIMUM_FREE_BYTES = 2 * 2**30


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    verdict: Literal["fine", "note", "wrong"]
    detail: str


def checkup(home: Path, *, checksums: bool = False) -> list[Finding]:
    """Installation, machine, model, store and database, in that order.

    With ``checksums`` every stored token and activation is read and compared, which takes a while.
    """
    findings = [_package(name) for name in ("torch", "transformers", "dagster", "duckdb", "polars")]
    findings += [_torchvision(), _device(), _disk(home), _bundled_model()]
    findings += [*_experiments(home), *_store(home), _database(home)]
    return findings + (_checksums(home) if checksums else [])


def _package(name: str) -> Finding:
    try:
        return Finding(name, "fine", version(name))
    except PackageNotFoundError:
        return Finding(name, "wrong", "not installed; run `make install`")


def _torchvision() -> Finding:
    """A torchvision that was built for another torch breaks `import transformers`."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "fine", "not installed, as it should be")
    return Finding("torchvision", "note", "installed; if transformers fails, uninstall it")


def _device() -> Finding:
    import torch

    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return Finding("device", "fine", f"CUDA: {torch.cuda.get_device_name(0)}; pass --device")
    return Finding("device", "fine", f"CPU, {threads} threads of {os.cpu_count()} cores")


def _disk(home: Path) -> Finding:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    verdict = "fine" if free > MINIMUM_FREE_BYTES else "wrong"
    return Finding("disk", verdict, f"{free / 2**30:.1f} GiB free at {place}")


def _bundled_model() -> Finding:
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.language_model import load_model

    try:
        model = load_model(ModelConfig(id="world"))
    except SaeError as error:
        return Finding("bundled model", "wrong", str(error))
    return Finding("bundled model", "fine", f"world: {model.num_layers} layers loaded")


def _experiments(home: Path) -> list[Finding]:
    found, broken = outlines(home)
    findings = [Finding("experiments", "fine", f"{len(found)} readable")]
    return findings + [Finding(file, "wrong", reason) for file, reason in broken.items()]


def _store(home: Path) -> list[Finding]:
    """Finished artefacts that cannot be read, and working folders a killed run left."""
    store = ArtifactStore(home)
    findings, count = [], 0
    for folder in sorted((home / "artifacts").glob("*")):
        try:
            count += len(store.manifests(folder.name))
        except SaeError as error:
            findings.append(Finding(f"artefacts/{folder.name}", "wrong", str(error)))
        for partial in folder.glob(".*.partial"):
            findings.append(
                Finding(
                    f"artefacts/{folder.name}",
                    "note",
                    f"{partial.name} is unfinished; the same run takes it up again",
                )
            )
    return [Finding("store", "fine", f"{count} artefacts in {home}"), *findings]


def _checksums(home: Path) -> list[Finding]:
    """Stored tokens and activations whose bytes are not those that were written."""
    from sae_lib.activations.store import ActivationStore
    from sae_lib.activations.tokens import Tokens

    store = ArtifactStore(home)
    findings, count = [], 0
    for kind, opener in (("tokens", Tokens.open), ("activations", ActivationStore.open)):
        for manifest in store.manifests(kind):
            count += 1
            try:
                opener(Path(manifest["path"])).verify()
            except SaeError as error:
                findings.append(Finding(f"artefacts/{kind}", "wrong", str(error)))
    return [Finding("checksums", "fine", f"{count} artefacts compared"), *findings]


def _database(home: Path) -> Finding:
    from sae_lib.warehouse.publish import is_stale
    from sae_lib.warehouse.query import query

    database = home / "results.duckdb"
    if not database.is_file():
        return Finding("database", "note", "none yet; `sae run` makes it")
    try:
        saes = query(database, "select count(*) as n from saes").item()
    except SaeError as error:
        return Finding("database", "wrong", str(error))
    state = (
        "older than the results; `sae sql` updates it"
        if is_stale(home / "warehouse", database)
        else "up to date"
    )
    return Finding("database", "fine", f"{saes} SAEs, {state}")
