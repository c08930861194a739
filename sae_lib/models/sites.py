"""Names of places inside a model: ``resid_post.2``, ``mlp_act.0``, ``module:transformer.wte``."""

from pathlib import Path
from typing import NamedTuple

from sae_lib.errors import BadInput, nearest
from sae_lib.models.families import BY_NAME, KINDS
from sae_lib.models.inspect import ModelInfo

MODULE = "module"


class Site(NamedTuple):
    """A place whose activations can be read and replaced; ``families`` says what each kind is."""

    kind: str
    """One of ``families.KINDS``, or ``module``."""

    layer: int | None
    """Block, counted from 0; None for ``module``."""

    path: str | None = None
    """Dotted path of the module whose output it is, from the whole model; only for ``module``."""

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that ``text`` names; whether a model has it is for ``check_site`` to say."""
        kind, colon, path = text.partition(":")
        if colon and kind == MODULE and path:
            return cls(MODULE, None, path)
        kind, _, layer = text.partition(".")
        if kind in KINDS and layer.isascii() and layer.isdecimal() and str(int(layer)) == layer:
            return cls(kind, int(layer))
        if kind in KINDS:
            raise BadInput(
                f"After {kind} comes a point and a layer, counted from 0: {kind}.0.", value=text
            )
        raise BadInput(
            f"A site is KIND.LAYER with KIND one of {', '.join(KINDS)}, or module:DOTTED.PATH."
            f"{nearest(kind, (*KINDS, MODULE))}",
            value=text,
        )

    def __str__(self) -> str:
        return f"{MODULE}:{self.path}" if self.kind == MODULE else f"{self.kind}.{self.layer}"


def sites_of(info: ModelInfo) -> list[str]:
    """Every site of the model but its modules, in the order a forward pass reaches them."""
    kinds = BY_NAME[info.family].points_of(info.wiring)
    return [f"{kind}.{layer}" for layer in range(info.num_layers) for kind in kinds]


def check_site(
    info: ModelInfo, site: Site | str, *, file: Path | str | None = None, key: str | None = None
) -> Site:
    """The site, when the model has it; otherwise an error that says which there are.

    A ``module:`` path can only be checked once the model is loaded, and passes.

    Raises:
        BadInput: with ``file`` and ``key`` as the place where the site was written.
    """
    try:
        parsed = Site.parse(site) if isinstance(site, str) else site
    except BadInput as error:
        raise BadInput(error.problem, file=file, key=key, value=error.value) from error
    if parsed.kind == MODULE:
        return parsed
    if parsed.kind not in BY_NAME[info.family].points_of(info.wiring):
        raise BadInput(
            f"{info.id} has no {parsed.kind}: its attention and MLP both read the block's input"
            " and are added together, so the stream never stands between them. Use resid_pre,"
            " resid_post, attn_out or mlp_out.",
            file=file,
            key=key,
            value=str(parsed),
        )
    if parsed.layer is None or not 0 <= parsed.layer < info.num_layers:
        raise BadInput(
            f"{parsed} but the model has {info.num_layers} layers: 0 to {info.num_layers - 1}",
            file=file,
            key=key,
            value=str(parsed),
        )
    return parsed


def site_width(info: ModelInfo, site: Site | str) -> int | None:
    """Numbers per token at the site; None for a module, which must be loaded to know.

    Raises:
        BadInput: the model has no such site.
    """
    kind = check_site(info, site).kind
    if kind == MODULE:
        return None
    return info.d_mlp if kind == "mlp_act" else info.d_model
