"""Language models: observed, never built here."""

from collections.abc import Callable

import dagster as dg

from assets.study import Study


def model_key(name: str) -> dg.AssetKey:
    return dg.AssetKey(["models", name])


def model_source(name: str, load: Callable[[], Study]) -> dg.AssetsDefinition:
    """The model as an observable asset whose data version is its fingerprint."""

    @dg.observable_source_asset(
        key=model_key(name),
        group_name="models",
        description=(
            f"The language model `{name}`. Its data version is a fingerprint of weights, config "
            "and tokenizer: a changed weight file is another model."
        ),
    )
    def model() -> dg.ObserveResult:
        study = load()
        info = study.info
        return dg.ObserveResult(
            data_version=dg.DataVersion(study.model_fingerprint),
            metadata={
                "fingerprint": study.model_fingerprint,
                "id": study.model.id,
                "family": info.family,
                "layers": info.num_layers,
                "width": info.d_model,
                "vocabulary": info.vocab_size,
                "context": info.max_context,
                "predicts tokens": info.has_lm_head,
            },
        )

    return model  # pyright: ignore[reportReturnType]  (the decorator's stub says SourceAsset)
