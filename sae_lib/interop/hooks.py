"""What TransformerLens, and with it most released SAEs, calls our sites."""

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_act": "mlp.hook_post",
}
"""Name below ``blocks.LAYER`` by kind of site."""


def hook_of(site: str) -> str | None:
    """The hook of a single site, such as ``blocks.2.hook_resid_post``; None where there is none."""
    kind, _, layer = site.partition(".")
    return f"blocks.{layer}.{HOOKS[kind]}" if kind in HOOKS and layer.isdecimal() else None


def site_of(hook: str) -> str | None:
    """The site of a hook; None where none of ours is the same."""
    blocks, _, rest = hook.partition(".")
    layer, _, name = rest.partition(".")
    kinds = {name: kind for kind, name in HOOKS.items()}
    if blocks != "blocks" or not layer.isdecimal() or name not in kinds:
        return None
    return f"{kinds[name]}.{layer}"
