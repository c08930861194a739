"""What hangs on the modules of a model."""

from typing import Any


def count_hooks(lm: Any) -> int:
    """Hooks of ours. Those of transformers stay on a model that ever returned hidden states."""
    hooks = [
        hook
        for module in lm.model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    functions = [getattr(hook, "func", hook) for hook in hooks]  # of partials what they call
    return sum(not function.__module__.startswith("transformers.") for function in functions)
