"""Which commit of a hub model is meant, and its config; nothing else is asked of the hub here."""

from pathlib import Path

from sae_lib.errors import BadInput, nearest
from sae_lib.models.config import ModelConfig


def hub_commit(cfg: ModelConfig, bundled: list[str]) -> str:
    """The commit that the revision stands for, by the hub or, out of its reach, by the cache.

    Raises:
        BadInput: no such model or revision, or neither hub nor cache can tell. ``bundled`` are
            the names to suggest instead.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The HTTP library below the hub's has changed and has its own root of errors: take that one.
    http_errors = tuple(
        kind
        for kind in HfHubHTTPError.__mro__
        if issubclass(kind, Exception) and kind is not Exception
    )
    known = f" Bundled: {', '.join(bundled)}.{nearest(cfg.id, bundled)}"
    try:
        # asked first because a download retries for 20 seconds when there is no network
        commit = HfApi().model_info(cfg.id, revision=cfg.revision).sha
    except RevisionNotFoundError as error:
        raise BadInput(
            f"The hub model {cfg.id!r} has no such revision.", key="revision", value=cfg.revision
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise BadInput(
            "This is neither a bundled model nor a local directory nor a hub model that you may"
            f" read.{known}",
            key="id",
            value=cfg.id,
        ) from error
    except http_errors as error:
        cached = try_to_load_from_cache(cfg.id, "config.json", revision=cfg.revision)
        if isinstance(cached, str):
            return Path(cached).parent.name  # .../snapshots/COMMIT/config.json
        unreached = BadInput(
            "This is neither a bundled model nor a local directory, and the hub cannot be"
            f" reached to look for it there.{known}",
            key="id",
            value=cfg.id,
        )
        unreached.is_transient = True
        raise unreached from error
    if not commit:
        raise BadInput("The hub does not say which commit this is.", key="id", value=cfg.id)
    return commit


def hub_config(cfg: ModelConfig, bundled: list[str]) -> Path:
    """The ``config.json`` of a hub model, downloaded unless the cache has it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    commit = hub_commit(cfg, bundled)
    try:
        return Path(hf_hub_download(cfg.id, "config.json", revision=commit))
    except EntryNotFoundError as error:
        raise BadInput("The hub model has no config.json.", key="id", value=cfg.id) from error
