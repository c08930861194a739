"""A folder of files that register themselves, and the one list that everything else reads."""

from collections.abc import ItemsView, Iterable, Iterator, ValuesView
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from sae_lib.errors import UnknownName

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Names and what they stand for. Two things with one name are an error at import."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item) -> Item:
        if name in self._items:
            raise ValueError(
                f"two {self.what}s are called {name!r}: {self._items[name]} and {item}"
            )
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> Item:
        if name not in self._items:
            raise UnknownName(self.what, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> ItemsView[str, Item]:
        return {name: self._items[name] for name in self}.items()

    def values(self) -> ValuesView[Item]:
        return {name: self._items[name] for name in self}.values()


def import_members(package: str, path: Iterable[str]) -> None:
    """Import every public module of ``package``, so that its members register themselves."""
    for module in iter_modules(path):
        if not module.name.startswith("_"):
            import_module(f"{package}.{module.name}")
