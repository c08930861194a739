"""Groups of features that do not fire independently of each other, with exact probabilities.

    independent  any number of features, probabilities spaced evenly in their logarithm
    siblings     exactly one of the group is active, or none
    pair         two features whose firing has a given correlation (phi)
    hierarchy    a child is active only where its parent is
    entities     one-hot values of attributes, read from a fixed table of entities

A group is a frozen config. It draws which of its features are active on many samples at once, and
knows the probability of each feature and of each two together, so that what is measured can be
compared with what was planted.
"""

from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sae_lib.config import Config


class Group(Config):
    """What every group's description has; a kind of group adds its dials."""

    kind: str
    """Name of the kind of group."""

    copies: int = Field(default=1, gt=0)
    """How many groups of these settings; each fires by itself."""

    per_document: bool = False
    """Whether all samples of a bag share which features of the group are active."""

    @property
    def size(self) -> int:
        """Features of one copy."""
        raise TypeError(f"{type(self).__name__} has no size")

    @property
    def num_features(self) -> int:
        return self.copies * self.size

    def chances(self) -> Float[Tensor, " size"]:
        """Probability that each feature of one copy is active, float64."""
        return self.joint().diagonal()

    def joint(self) -> Float[Tensor, "size size"]:
        """Probability that two features of one copy are active together; float64."""
        raise TypeError(f"{type(self).__name__} has no probabilities")

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        """Which features of all copies are active on ``num`` samples, copy by copy."""
        raise TypeError(f"{type(self).__name__} does not fire")


class Independent(Group):
    """Features that know nothing of each other, from frequent to rare."""

    kind: Literal["independent"] = "independent"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the kind of group."""

    features: int = Field(default=16, gt=0)
    """How many there are."""

    highest: float = Field(default=0.2, gt=0, le=1)
    """Probability of the first one."""

    lowest: float = Field(default=0.002, gt=0, le=1)
    """Probability of the last one; those between are spaced evenly in their logarithm."""

    @property
    def size(self) -> int:
        return self.features

    def chances(self) -> Float[Tensor, " size"]:
        return torch.from_numpy(np.geomspace(self.highest, self.lowest, self.features))

    def joint(self) -> Float[Tensor, "size size"]:
        return independent_joint(self.chances())

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        return torch.from_numpy(draw.random((num, self.num_features))) < self.chances().repeat(
            self.copies
        )


class Siblings(Group):
    """Features that exclude each other: one of them is active, or none."""

    kind: Literal["siblings"] = "siblings"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the kind of group."""

    siblings: int = Field(default=4, gt=1)
    """Features of the group, all equally probable."""

    chance: float = Field(default=0.4, gt=0, le=1)
    """Probability that one of them is active."""

    @property
    def size(self) -> int:
        return self.siblings

    def joint(self) -> Float[Tensor, "size size"]:
        return torch.eye(self.siblings, dtype=torch.float64) * (self.chance / self.siblings)

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        chosen = _choice(draw, (num, self.copies), self.siblings, self.chance)
        return _one_hot(chosen, self.siblings).reshape(num, -1)


class Pair(Group):
    """Two features with a given correlation: a task and what it is confounded with."""

    kind: Literal["pair"] = "pair"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the kind of group."""

    first: float = Field(default=0.3, gt=0, lt=1)
    """Probability of the first feature."""

    second: float = Field(default=0.3, gt=0, lt=1)
    """Probability of the second feature."""

    correlation: float = Field(default=0.5, ge=-1, le=1)
    """Correlation of the two indicators (phi coefficient), exact in expectation."""

    @model_validator(mode="after")
    def _is_possible(self) -> "Pair":
        p, q, both = self.first, self.second, self.both
        spread = self._spread
        lowest, highest = (max(0.0, p + q - 1) - p * q) / spread, (min(p, q) - p * q) / spread
        if not lowest - 1e-9 <= self.correlation <= highest + 1e-9:
            raise ValueError(
                f"features of probability {p} and {q} can have a correlation from {lowest:.4g} to "
                f"{highest:.4g}; got correlation={self.correlation}, which needs both active with "
                f"probability {both:.4g}"
            )
        return self

    @property
    def _spread(self) -> float:
        return (self.first * (1 - self.first) * self.second * (1 - self.second)) ** 0.5

    @property
    def both(self) -> float:
        """Probability that both are active."""
        return self.first * self.second + self.correlation * self._spread

    @property
    def size(self) -> int:
        return 2

    def joint(self) -> Float[Tensor, "size size"]:
        both = self.both
        return torch.tensor([[self.first, both], [both, self.second]], dtype=torch.float64)

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        u, v = draw.random((2, num, self.copies))
        first = u < self.first
        without = (self.second - self.both) / (1 - self.first)
        second = v < np.where(first, self.both / self.first, without)
        return torch.from_numpy(np.stack([first, second], axis=-1)).reshape(num, -1)


class Hierarchy(Group):
    """A tree: a feature is active only where its parent is.

    Features are numbered level by level, the root first and the children of one parent side by
    side.
    """

    kind: Literal["hierarchy"] = "hierarchy"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the kind of group."""

    chance: float = Field(default=0.2, gt=0, le=1)
    """Probability of the root."""

    levels: tuple[tuple[Annotated[float, Field(gt=0, le=1)], ...], ...] = Field(
        default=((0.2, 0.2, 0.2, 0.2),), min_length=1
    )
    """For each level below the root the probabilities of a node's children, given the node."""

    is_exclusive: bool = True
    """Whether at most one child of a node is active at a time."""

    @model_validator(mode="after")
    def _is_possible(self) -> "Hierarchy":
        for children in self.levels:
            if not children:
                raise ValueError("a level without children says nothing; leave it out")
            if self.is_exclusive and sum(children) > 1 + 1e-9:
                raise ValueError(
                    f"children that exclude each other have probabilities of at most 1 in sum; "
                    f"{children} is {sum(children):.4g}"
                )
        return self

    @property
    def size(self) -> int:
        return len(self.parents())

    def parents(self) -> Int[Tensor, " size"]:
        """For each feature the number of its parent; -1 for the root."""
        parents, level = [-1], [0]
        for children in self.levels:
            start = len(parents)
            parents += [node for node in level for _ in children]
            level = list(range(start, len(parents)))
        return torch.tensor(parents)

    def given_parent(self) -> Float[Tensor, " size"]:
        """Probability of each feature given its parent; the root's own for the root."""
        given, width = [self.chance], 1
        for children in self.levels:
            given += children * width
            width *= len(children)
        return torch.tensor(given, dtype=torch.float64)

    def joint(self) -> Float[Tensor, "size size"]:
        parents, given = self.parents(), self.given_parent()
        joint = torch.zeros(len(parents), len(parents), dtype=torch.float64)
        joint[0, 0] = self.chance
        for node in range(1, len(parents)):
            parent = int(parents[node])
            # given its parent, a node is independent of all earlier ones but excluded siblings
            with_earlier = given[node] * joint[parent, :node]
            if self.is_exclusive:
                with_earlier = with_earlier.masked_fill(parents[:node] == parent, 0.0)
            joint[node, :node] = joint[:node, node] = with_earlier
            joint[node, node] = given[node] * joint[parent, parent]
        return joint

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        level = torch.from_numpy(draw.random((num, self.copies, 1))) < self.chance
        found = [level]
        for children in self.levels:
            if self.is_exclusive:
                u = draw.random(level.shape)
                chosen = np.searchsorted(np.cumsum(children), u, side="right")
                below = _one_hot(torch.from_numpy(chosen), len(children))
            else:
                u = torch.from_numpy(draw.random((*level.shape, len(children))))
                below = u < torch.tensor(children, dtype=torch.float64)
            level = (below & level[..., None]).flatten(2)
            found.append(level)
        return torch.cat(found, dim=-1).reshape(num, -1)


class Entities(Group):
    """Attributes of entities: where an entity is mentioned, one value of each is active.

    Which values an entity has is fixed by a random table in which no two entities agree in all
    attributes. A value that no entity has never fires.
    """

    kind: Literal["entities"] = "entities"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the kind of group."""

    entities: int = Field(default=60, gt=0)
    """Entities in the table, mentioned equally often; copies share the table."""

    values: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(4, 5, 6), min_length=1)
    """For each attribute how many values it has."""

    chance: float = Field(default=0.3, gt=0, le=1)
    """Probability that an entity is mentioned."""

    table_seed: int = Field(default=0, ge=0)
    """Decides the table."""

    @model_validator(mode="after")
    def _entities_can_differ(self) -> "Entities":
        if self.entities > int(np.prod(self.values)):
            raise ValueError(
                f"attributes with {self.values} values tell {int(np.prod(self.values))} entities "
                f"apart; got entities={self.entities}"
            )
        return self

    @property
    def size(self) -> int:
        return sum(self.values)

    def table(self) -> Int[Tensor, "entities attributes"]:
        """For each entity the value of each attribute."""
        draw = np.random.default_rng(self.table_seed)
        cells = draw.choice(int(np.prod(self.values)), self.entities, replace=False)
        return torch.from_numpy(np.stack(np.unravel_index(cells, self.values), axis=1))

    def features(self) -> Bool[Tensor, "entities size"]:
        """For each entity the features that are active where it is mentioned."""
        columns = self.table().unbind(1)
        hot = [_one_hot(c, n) for c, n in zip(columns, self.values, strict=True)]
        return torch.cat(hot, dim=1)

    def entity_of(self, active: Bool[Tensor, "*batch size"]) -> Int[Tensor, "*batch"]:
        """Which entity these features of one copy mention; -1 for none."""
        patterns = self.features().float()
        # all attributes agree with one entity only
        agree = active.float() @ patterns.mT
        best = agree.max(-1)
        return torch.where(best.values == len(self.values), best.indices, -1)

    def joint(self) -> Float[Tensor, "size size"]:
        patterns = self.features().double()
        return patterns.mT @ patterns * (self.chance / self.entities)

    def fire(self, draw: np.random.Generator, num: int) -> Bool[Tensor, "num features"]:
        entity = _choice(draw, (num, self.copies), self.entities, self.chance)
        nobody = torch.zeros(1, self.size, dtype=torch.bool)
        return torch.cat([self.features(), nobody])[entity].reshape(num, -1)


AnyGroup = Annotated[
    Independent | Siblings | Pair | Hierarchy | Entities, Field(discriminator="kind")
]


def independent_joint(chances: Float[Tensor, " size"]) -> Float[Tensor, "size size"]:
    """Probability that two of several independent features are active together."""
    joint = torch.outer(chances, chances)
    joint.diagonal().copy_(chances)
    return joint


def columns_of(groups: tuple[Group, ...], first: int) -> list[Int[Tensor, "copies size"]]:
    """For each group the numbers of its features, copy by copy, from ``first`` on."""
    ends = np.cumsum([first, *(group.num_features for group in groups)]).tolist()
    return [
        torch.arange(start, end).reshape(group.copies, group.size)
        for (start, end), group in zip(pairwise(ends), groups, strict=True)
    ]


def single(z: Float[Tensor, "*batch features"], feature: int) -> Bool[Tensor, "*batch"]:
    """Where the feature is active. Labels combine by ``&``, ``|`` and ``~``."""
    return z[..., feature] > 0


def any_of(z: Float[Tensor, "*batch features"], some: list[int]) -> Bool[Tensor, "*batch"]:
    """Where at least one of the features is active."""
    return (z[..., some] > 0).any(-1)


def all_of(z: Float[Tensor, "*batch features"], some: list[int]) -> Bool[Tensor, "*batch"]:
    """Where every one of the features is active."""
    return (z[..., some] > 0).all(-1)


def _choice(
    draw: np.random.Generator, shape: tuple[int, ...], options: int, chance: float
) -> Int[Tensor, "*shape"]:
    """One of ``options``, all alike, with probability ``chance``; otherwise ``options`` itself."""
    found = np.floor(draw.random(shape) * (options / chance))
    return torch.from_numpy(np.minimum(found, options).astype(np.int64))


def _one_hot(chosen: Int[Tensor, "*batch"], options: int) -> Bool[Tensor, "*batch options"]:
    """Nothing is hot where ``chosen`` is beyond the options."""
    return chosen[..., None] == torch.arange(options)
