"""Files of a harvested site: their names, what they hold, and what is known about them."""

from typing import Literal

from pydantic import Field

from sae_lib.activations import _shards
from sae_lib.config import Config

FORMAT_VERSION = 1

SITE, STATS, PROGRESS = "site.json", "stats.safetensors", "harvest.json"

REMEDY = "Delete the folder and run again to rebuild it."

StoreDtype = Literal["bfloat16", "float16", "float32"]


class SiteSummary(Config):
    """Content of ``site.json``."""

    format_version: Literal[1] = FORMAT_VERSION
    """Layout of the folder."""

    site: str
    """Where in the model; see `sae_lib.models.sites`."""

    d_in: int = Field(gt=0)
    """Width."""

    dtype: StoreDtype
    """Format of the stored activations."""

    split: Literal["train", "eval"]
    """Side of the corpus."""

    tokens: str
    """Digest of the tokens that were fed."""

    context: int = Field(gt=0)
    """Positions per context."""

    num_contexts: int = Field(gt=0)
    """Contexts that were fed."""

    num_rows: int = Field(gt=0)
    """Activations stored: the kept positions."""

    mean_norm: float = Field(ge=0)
    """Mean of ``|x|`` over the stored rows."""

    mean_square_norm: float = Field(ge=0)
    """Mean of ``|x|^2`` over the stored rows."""

    stats: _shards.FileRecord
    """File with the vectors."""

    files: tuple[_shards.FileRecord, ...]
    """Shards, in order."""

    rows_per_file: tuple[int, ...]
    """Rows in each shard."""

    contexts_per_file: tuple[int, ...]
    """Contexts in each shard."""


def site_folder(site: str) -> str:
    """Name of the folder of ``site``: a colon is not allowed in names everywhere."""
    return site.replace(":", "=")


def shard_specs(num_rows: int, d_in: int, dtype: str) -> dict[str, _shards.TensorSpec]:
    """What a shard holds, in the order of the file."""
    return {
        "rows": _shards.TensorSpec("I64", (num_rows,)),
        "activations": _shards.TensorSpec(_shards.STORE_DTYPES[dtype][0], (num_rows, d_in)),
    }
