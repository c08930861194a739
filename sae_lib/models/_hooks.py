"""Reading and replacing a tensor on its way into or out of a module, by plain forward hooks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_lib.errors import BadInput
from sae_lib.models.families import Point


def read(
    block: nn.Module, point: Point, see: Callable[[Tensor], None], site: str
) -> list[RemovableHandle]:
    """Show ``see`` what is at ``point`` of ``block`` in every forward, (batch, seq, d), no copy.

    Raises (in the forward):
        BadInput: there are no activations of that shape at ``site``.
    """

    def show(rows: Tensor) -> None:
        see(rows)

    return _attach(block, point, show, site)


def replace(
    block: nn.Module, point: Point, edit: Callable[[Tensor], Tensor], site: str
) -> list[RemovableHandle]:
    """Put ``edit(x)`` in the place of x at ``point`` of ``block`` in every forward.

    ``edit`` is given a copy: it may write into it, or keep it. Hooks at one place act in the
    order in which they were attached, each on what the one before it left.

    Raises (in the forward):
        BadInput: there are no activations at ``site``, or ``edit`` returns another shape.
    """

    def edited(rows: Tensor) -> Tensor:
        new = edit(rows.clone())
        if not isinstance(new, Tensor) or new.shape != rows.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise BadInput(
                f"The replacement should have the shape of what is there, {tuple(rows.shape)};"
                f" it is {given}.",
                value=site,
            )
        return new.to(rows.dtype)

    return _attach(block, point, edited, site)


def _attach(
    block: nn.Module, point: Point, act: Callable[[Tensor], Tensor | None], site: str
) -> list[RemovableHandle]:
    module = block.get_submodule(point.module)
    lead: list[int] = []

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lead[:] = _entering(args, kwargs, site).shape[:2]

    def acted(x: object) -> Tensor | None:
        rows = x.unflatten(0, lead) if point.is_flat and isinstance(x, Tensor) else x
        if not isinstance(rows, Tensor) or rows.ndim != 3 or not rows.is_floating_point():
            given = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else x
            raise BadInput(
                f"Activations of shape (batch, seq, d) were expected there, not {given}.",
                value=site,
            )
        new = act(rows)
        return None if new is None else new.flatten(0, 1) if point.is_flat else new

    def on_input(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = _entering(args, kwargs, site)
        new = acted(x)
        if new is None:
            return None
        if point.is_shared:
            x.copy_(new)  # the residual goes on past the module in this very tensor
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def on_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple) or not output:
            return acted(output)
        new = acted(output[0])
        return None if new is None else (new, *output[1:])

    handles: list[RemovableHandle] = []
    if point.is_flat:
        handles.append(block.register_forward_pre_hook(remember, with_kwargs=True))
    if point.side == "input":
        handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
    else:
        handles.append(module.register_forward_hook(on_output))
    return handles


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any], site: str) -> Tensor:
    x = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(x, Tensor):
        raise BadInput("No activations enter the module there.", value=site)
    return x
