"""Write a trained model as a Hugging Face folder that any loader reads."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel


def begin_folder(target: Path) -> Path:
    """An empty sibling of ``target`` to write into, before `replace_folder`."""
    made = target.parent / f".{target.name}.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    return made


def replace_folder(made: Path, target: Path) -> None:
    """Put the files of ``made`` in place one by one, weights last; each replacement is atomic."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(made.iterdir(), key=lambda f: f.name == "model.safetensors"):
        file.replace(target / file.name)
    shutil.rmtree(made)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Config, generation config and float32 weights; of tied weights, one."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.use_cache = True  # training goes without, generation should not
    model.config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)
    # model.save_pretrained would write the same tensors, and a progress bar
    save_file(
        {name: p.detach().contiguous() for name, p in model.named_parameters()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "model.safetensors").chmod(0o644)
