"""What goes where in SAEBench's result files: the one table of it.

``LAYOUTS`` gives, for every eval type, the categories of numbers and their keys; each `Source` says
which rows of the table ``metrics`` a number comes from. The layout is that of SAEBench 0.6.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

NONE: Mapping[str, Any] = MappingProxyType({})

PROBED_K = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of latents that have a key of their own under sparse probing."""

ABLATED_N = (2, 5, 10, 20, 50, 100, 500)
"""The same under SCR and TPP."""


class Source(NamedTuple):
    """Where one number comes from."""

    name: str
    """Name of the rows; empty where the number is not measured, or computed otherwise."""

    definitions: tuple[str, ...] = ()
    """Of several definitions that have a value the first."""

    params: Mapping[str, Any] = NONE
    """What the params of the row must hold, among others."""

    part: Literal["value", "spread", "units", "total"] = "value"
    """The value; the standard deviation over the units that it is a mean over; their number; or
    value times number."""

    is_whole: bool = False
    """Whether the number is an integer."""

    is_optional: bool = False
    """Whether the key may be null, or left out."""


class Layout(NamedTuple):
    """The numbers of one eval type."""

    metric: str
    """The metric, as experiment files name it, that measures them."""

    categories: Mapping[str, Mapping[str, Source]]
    details: Mapping[str, Source] = NONE
    """Numbers of one dataset or letter; empty where files have none."""

    detail_param: str = "dataset"
    """Param that says which dataset or letter a row is about."""

    detail_key: str = "dataset_name"
    detail_suffix: str = "_results"
    """What SAEBench appends to the name of a dataset."""


CORE: dict[str, dict[str, Source]] = {
    "model_behavior_preservation": {
        "kl_div_score": Source("kl_score", ("zero_ablation_kept", "zero_ablation_all")),
        "kl_div_with_ablation": Source("kl_ablated", ("zero_ablation_kept", "zero_ablation_all")),
        "kl_div_with_sae": Source("kl_spliced", ("splice_kept", "splice_all")),
    },
    "model_performance_preservation": {
        "ce_loss_score": Source("loss_recovered", ("zero_ablation_kept", "zero_ablation_all")),
        "ce_loss_with_ablation": Source("ce_ablated", ("zero_ablation_kept", "zero_ablation_all")),
        "ce_loss_with_sae": Source("ce_spliced", ("splice_kept", "splice_all")),
        "ce_loss_without_sae": Source("ce_clean", ("mean_of_tokens",)),
    },
    "reconstruction_quality": {
        "explained_variance": Source("explained_variance", ("ratio_of_sums",)),
        "explained_variance_legacy": Source("explained_variance", ("legacy_mean_of_ratios",)),
        "mse": Source("mse", ("per_token",)),
        "cossim": Source("cosine", ("mean_of_tokens",)),
    },
    "shrinkage": {
        "l2_norm_in": Source("l2_norm_in", ("mean_of_tokens",)),
        "l2_norm_out": Source("l2_norm_out", ("mean_of_tokens",)),
        "l2_ratio": Source("l2_ratio", ("mean_of_ratios",)),
        "relative_reconstruction_bias": Source("relative_reconstruction_bias", ("ratio_of_sums",)),
    },
    "sparsity": {
        "l0": Source("l0", ("mean_of_tokens",)),
        "l1": Source("l1", ("mean_of_tokens",)),
    },
    "token_stats": {
        "total_tokens_eval_reconstruction": Source("", is_whole=True),
        "total_tokens_eval_sparsity_variance": Source("", is_whole=True),
    },
    "misc_metrics": {
        "freq_over_1_percent": Source("dense_share", ("density_above",), {"threshold": 0.01}),
        "freq_over_10_percent": Source("dense_share", ("density_above",), {"threshold": 0.1}),
        "normalized_freq_over_1_percent": Source(
            "density_mass", ("density_above",), {"threshold": 0.01}
        ),
        "normalized_freq_over_10_percent": Source(
            "density_mass", ("density_above",), {"threshold": 0.1}
        ),
        "average_max_encoder_cosine_sim": Source("max_encoder_cosine", ("mean_of_latents",)),
        "average_max_decoder_cosine_sim": Source("max_decoder_cosine", ("mean_of_latents",)),
        "frac_alive": Source("alive_share", ("fired_once",)),
    },
}


def _series(
    key: str,
    numbers: tuple[int, ...],
    name: str,
    definitions: tuple[str, ...],
    param: str = "k",
) -> dict[str, Source]:
    """Keys that hold a number of latents, all of them optional."""
    return {key.format(k): Source(name, definitions, {param: k}, is_optional=True) for k in numbers}


def _probing(of_one: bool) -> dict[str, dict[str, Source]]:
    end = "_of_one" if of_one else ""
    accuracy = "sparse_probing_accuracy"
    dense = Source(accuracy, (f"dense_probe{end}",))
    latents = Source(accuracy, (f"all_latents{end}",), is_optional=True)
    return {
        "llm": {
            "llm_test_accuracy": dense,
            **_series("llm_top_{}_test_accuracy", PROBED_K, accuracy, (f"residual_top_k{end}",)),
        },
        "sae": {
            "sae_test_accuracy": latents,
            **_series("sae_top_{}_test_accuracy", PROBED_K, accuracy, (f"top_k{end}",)),
        },
    }


def _sae_probes(of_one: bool) -> dict[str, dict[str, Source]]:
    end = "_of_one" if of_one else ""
    kinds = {"accuracy": "accuracy", "auc": "auc", "f1": "f1"}
    llm = {
        f"llm_test_{kind}": Source(
            f"sparse_probing_{name}", (f"dense_probe{end}",), is_optional=True
        )
        for kind, name in kinds.items()
    }
    sae = {
        key: source
        for kind, name in kinds.items()
        for key, source in _series(
            f"sae_top_{{}}_test_{kind}", PROBED_K, f"sparse_probing_{name}", (f"top_k{end}",)
        ).items()
    }
    whole = Source("sparse_probing_accuracy", (f"all_latents{end}",), is_optional=True)
    return {"llm": llm, "sae": {"sae_test_accuracy": whole, **sae}}


def _scr(of_one: bool) -> dict[str, Source]:
    end = "_of_one" if of_one else ""
    keys = {
        "scr_dir1_threshold_{}": f"direction_1{end}",
        "scr_metric_threshold_{}": f"metric_direction{end}",
        "scr_dir2_threshold_{}": f"direction_2{end}",
    }
    return {
        key: source
        for written, definition in keys.items()
        for key, source in _series(written, ABLATED_N, "scr", (definition,), "n").items()
    }


def _tpp(of_one: bool) -> dict[str, Source]:
    definition = "ablated_latents_of_one" if of_one else "ablated_latents"
    parts = {
        "total_metric": "tpp_total",
        "intended_diff_only": "tpp_intended",
        "unintended_diff_only": "tpp_unintended",
    }
    return {
        key: source
        for part, name in parts.items()
        for key, source in _series(
            f"tpp_threshold_{{}}_{part}", ABLATED_N, name, (definition,), "n"
        ).items()
    }


def _flat(categories: Mapping[str, Mapping[str, Source]]) -> dict[str, Source]:
    return {key: one for sources in categories.values() for key, one in sources.items()}


_fraction = Source("absorption_fraction", ("v0_6",))
_full = Source("full_absorption", ("v0_6",))
_split = Source("letter_split_latents", ("f1_jump",))
_autointerp = Source("autointerp_accuracy", ("held_out",))

LAYOUTS: dict[str, Layout] = {
    "core": Layout("reconstruction", CORE),
    "absorption_first_letter": Layout(
        "absorption",
        {
            "mean": {
                "mean_absorption_fraction_score": _fraction,
                "mean_full_absorption_score": _full,
                "mean_num_split_features": _split,
                "std_dev_absorption_fraction_score": _fraction._replace(part="spread"),
                "std_dev_full_absorption_score": _full._replace(part="spread"),
                "std_dev_num_split_features": _split._replace(part="spread"),
            }
        },
        {
            "mean_absorption_fraction": Source("absorption_fraction", ("of_one",)),
            "full_absorption_rate": Source("full_absorption", ("of_one",)),
            "num_full_absorption": Source(
                "full_absorption", ("of_one",), part="total", is_whole=True
            ),
            "num_probe_true_positives": Source(
                "full_absorption", ("of_one",), part="units", is_whole=True
            ),
            "num_split_features": Source("letter_split_latents", ("of_one",), is_whole=True),
        },
        detail_param="letter",
        detail_key="first_letter",
        detail_suffix="",
    ),
    "autointerp": Layout(
        "autointerp",
        {
            "autointerp": {
                "autointerp_score": _autointerp,
                "autointerp_std_dev": _autointerp._replace(part="spread"),
            }
        },
    ),
    "sparse_probing": Layout("sparse_probing", _probing(False), _flat(_probing(True))),
    "scr": Layout("scr", {"scr_metrics": _scr(False)}, _scr(True)),
    "tpp": Layout("tpp", {"tpp_metrics": _tpp(False)}, _tpp(True)),
    "ravel": Layout(
        "ravel",
        {
            "ravel": {
                "disentanglement_score": Source("ravel_disentangle", ("mdbm",)),
                "cause_score": Source("ravel_cause", ("mdbm",)),
                "isolation_score": Source("ravel_isolation", ("mdbm",)),
            }
        },
    ),
    "unlearning": Layout(
        "unlearning",
        {"unlearning": {"unlearning_score": Source("unlearning_score", ("best_of_grid",))}},
    ),
    "meta_structure_decoder_variance": Layout(
        "meta_sae",
        {
            "meta_structure": {
                "decoder_fraction_variance_explained": Source(
                    "meta_variance_explained", ("decoder_rows",)
                ),
                "train_time_seconds": Source(""),
                "final_reconstruction_mse": Source(""),
            }
        },
    ),
    "sparse_probing_sae_probes": Layout(
        "sparse_probing", _sae_probes(False), _flat(_sae_probes(True))
    ),
}
"""Every eval type by SAEBench's id, in the order of its documentation."""
