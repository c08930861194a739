"""Which language model."""

from typing import Literal

from pydantic import Field

from sae_lib.config import Config


class ModelConfig(Config):
    """A language model by name; the weights are found when they are needed."""

    id: str
    """Name of a bundled model, local directory in Hugging Face form, or hub id."""

    revision: str | None = None
    """Branch, tag or commit of a hub model; of a local one, a directory in its `revisions`."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and activations."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    """What the graph and the results call it; the last part of the id unless said."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run here."""
