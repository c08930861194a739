"""Where the model that learned the world lies in this package."""

from pathlib import Path

import sae_lib
from sae_lib.errors import MissingFile


def world_model_dir() -> Path:
    """Folder of the shipped model, for any loader of Hugging Face folders.

    Raises `MissingFile` when the package was installed without its data.
    """
    folder = Path(sae_lib.__file__).parent / "models" / "bundled" / "world"
    if not (folder / "model.safetensors").exists():
        raise MissingFile(
            "the bundled model is missing; install the package with its data, or make it with "
            "`sae world train FOLDER`",
            file=folder,
        )
    return folder
