"""Text, tokenised and packed into contexts."""

from collections.abc import Callable
from typing import Any, Literal

import dagster as dg

from assets.conditions import RETRY, explained, follows
from assets.grid import Outline, group
from assets.models import model_key
from assets.progress import progress
from assets.requests import pool_of, tags_of
from assets.store import Store, language_model
from assets.study import Study


def tokens_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "tokens"])


def tokens_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=tokens_key(outline.name),
        group_name=group(outline, "data"),
        kinds={"safetensors"},
        tags={"stage": "tokens"},
        op_tags=tags_of("tokens"),
        pool=pool_of("tokens"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        deps=[model_key(outline.model)],
        description="The corpus as token ids in contexts, split by document into training and "
        "evaluation; with document, position and a mask of the tokens that count.",
    )
    def tokens(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
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


def build_tokens_artifact(study: Study, store: Store, log: Callable[[str], None]) -> dict[str, Any]:
    """Build the token artefact unless it exists; its counts either way."""
    from sae_lib.activations.tokens import build_tokens

    identity = study.tokens
    if not store.artifacts.exists(identity):
        with store.artifacts.build(
            identity, parents={"model": study.model_fingerprint}
        ) as workspace:
            summary = build_tokens(
                study.corpus,
                language_model(study, store).tokenizer,
                study.info,
                workspace.path,
                relative_to=study.base,
                on_progress=progress("tokenising", log, unit="tokens"),
            )
            workspace.facts.update(_facts(summary))
    return store.artifacts.manifest(identity)["facts"]


def token_split(
    study: Study, store: Store, log: Callable[[str], None], name: Literal["train", "eval"]
) -> Any:
    """The training or evaluation side of the tokens, built now if they are not there.

    Every stage asks for its tokens here: when the model changed since they were made, they are
    others.
    """
    from sae_lib.activations.tokens import Tokens

    build_tokens_artifact(study, store, log)
    return Tokens.open(store.artifacts.path(study.tokens)).split(
        "eval" if name == "eval" else "train"
    )


def _facts(summary: Any) -> dict[str, Any]:
    """What one wants to see of a tokenised corpus, from its `TokenSummary`."""
    return {
        "context": summary.context,
        "train_contexts": summary.train.num_contexts,
        "train_tokens": summary.train.num_kept,
        "train_documents": summary.train.num_documents,
        "eval_contexts": summary.eval.num_contexts,
        "eval_tokens": summary.eval.num_kept,
        "eval_documents": summary.eval.num_documents,
        "shorter_than_asked": summary.train.short or summary.eval.short,
        "unknown_share": summary.unknown_share,
    }
