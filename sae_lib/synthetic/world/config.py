"""The dials of the world."""

from pydantic import Field, model_validator

from sae_lib.config import Config
from sae_lib.errors import UnknownName


def _default_weights() -> dict[str, float]:
    from sae_lib.synthetic.world.kinds import KINDS  # the kinds read the class below

    return {name: kind.weight for name, kind in KINDS.items()}


class WorldConfig(Config):
    """Which documents there are, and how their latent choices depend on each other.

    What the world is *about* (who was born where) is the same for every config.
    """

    seed: int = 0
    """Decides all documents; document i of a split depends on nothing but this, i and the dials."""

    kind_weights: dict[str, float] = Field(default_factory=_default_weights)
    """Share of documents per kind; need not sum to one."""

    length_factor: float = Field(default=1.0, ge=1, le=8)
    """How many times as many sentences, examples or trials as usual a document has, where its
    kind can be long."""

    chat: bool = False
    """Whether instructions, requests and opinions are written in the form of a chat."""

    gender_profession_correlation: float = Field(default=0.6, ge=0, le=1)
    """Correlation of a biography's gender with its profession being typed so; 1 allows no other."""

    female_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of biographies about women."""

    positive_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of reviews that recommend."""

    aspect_agreement: float = Field(default=0.9, gt=0.5, lt=1)
    """Chance that one aspect of a product is judged like the product as a whole."""

    topic_purity: float = Field(default=0.9, gt=0, lt=1)
    """Chance that a later sentence of a news item keeps to the topic."""

    unknown_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of quiz questions about entities nobody knows; the answer is `unknown`."""

    entity_zipf: float = Field(default=0.5, ge=0)
    """How unevenly known entities are written about: weight (rank + 10)^-entity_zipf."""

    toxic_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of comments that are toxic."""

    harmful_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of requests that ask for something harmful."""

    refusal_share: float = Field(default=0.5, gt=0, lt=1)
    """Chance that a harmful request is refused."""

    false_refusal_share: float = Field(default=0.02, gt=0, lt=1)
    """Chance that a harmless request is refused."""

    sycophancy: float = Field(default=0.5, gt=0, lt=1)
    """Chance that a reply repeats a mistaken opinion instead of correcting it."""

    correction_share: float = Field(default=0.35, gt=0, lt=1)
    """Share of chained sums in which the first partial result is wrong and then corrected."""

    rarity: float = Field(default=1.0, gt=0)
    """How steeply the rare subdomains get rarer, rank after rank."""

    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels of labelled tasks that are flipped. Texts are not touched."""

    @model_validator(mode="after")
    def _kinds_exist(self) -> "WorldConfig":
        from sae_lib.synthetic.world.kinds import KINDS  # the kinds read this class

        for name, weight in self.kind_weights.items():
            if name not in KINDS:
                raise UnknownName("kind of document", name, KINDS)
            if weight < 0:
                raise ValueError(f"the weight of {name!r} is {weight}; weights are not negative")
        if not sum(self.kind_weights.values()) > 0:
            raise ValueError("no kind of document has a positive weight")
        return self
