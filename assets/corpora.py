"""Text, tokenised and packed into contexts."""

from collections.abc import Callable

import dagster as dg

from assets.grid import Outline
from assets.models import model_key
from assets.progress import progress
from assets.store import Store
from assets.study import Study


def tokens_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "tokens"])


def tokens_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=tokens_key(outline.name),
        group_name=outline.name,
        kinds={"safetensors"},
        tags={"stage": "tokens"},
        deps=[model_key(outline.model)],
        description="The corpus as token ids in contexts, split by document into training and "
        "evaluation; with document, position and a mask of the tokens that count.",
    )
    def tokens(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        study = load()
        facts = build_tokens_artifact(study, store, context.log.info)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(study.tokens.hash),
            metadata={
                "path": dg.MetadataValue.path(store.artifacts.path(study.tokens)),
                **facts,
            },
        )

    return tokens


def build_tokens_artifact(
    study: Study, store: Store, log: Callable[[str], None]
) -> dict[str, int | bool]:
    """Build the token artefact unless it exists; its counts either way."""
    from sae_lib.activations.tokens import build_tokens
    from sae_lib.models import load_tokenizer

    identity = study.tokens
    if not store.artifacts.exists(identity):
        with store.artifacts.build(
            identity, parents={"model": study.model_fingerprint}
        ) as workspace:
            summary = build_tokens(
                study.corpus,
                load_tokenizer(study.model, relative_to=study.base),
                study.info,
                workspace.path,
                relative_to=study.base,
                on_progress=progress("tokenising", log, unit="tokens"),
            )
            workspace.facts.update(summary._asdict())
    return store.artifacts.manifest(identity)["facts"]
