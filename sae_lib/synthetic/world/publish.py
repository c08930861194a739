"""Write a trained model as a Hugging Face folder that any loader reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from sae_lib.synthetic.world.tokenizer import save_tokenizer


def replace_folder(made: Path, target: Path) -> None:
    """Put the files of ``made`` in place one by one, weights last; each replacement is atomic."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(made.iterdir(), key=lambda f: f.name == "model.safetensors"):
        file.replace(target / file.name)
    shutil.rmtree(made)


def begin_folder(target: Path) -> Path:
    """An empty sibling of ``target`` to write into, before `replace_folder`."""
    made = target.parent / f".{target.name}.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    return made


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Config, generation config and float32 weights."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.use_cache = True  # training goes without, generation should not
    model.config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)
    # model.save_pretrained would write the same tensors, and a progress bar
    save_file(
        {name: p.detach().contiguous() for name, p in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "model.safetensors").chmod(0o644)


_README = """# {name}

A Llama of {millions:.1f} million parameters ({layers} layers, width {hidden}) that learned the
bundled world: {tokens:,} tokens of {kinds} kinds of documents.{start}
Made by `{command}`; `training.json` holds the settings, the curve of the loss, the entropy floor of
the generator and what the model was measured to know.
"""


def publish(
    model: PreTrainedModel, out_dir: Path, record: dict[str, Any], *, name: str, start: str = ""
) -> None:
    """Put model, tokenizer, ``training.json`` (``record``) and a README into ``out_dir``."""
    made = begin_folder(out_dir)
    save_model(model, made)
    save_tokenizer(made)
    (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (made / "README.md").write_text(
        _README.format(
            name=name,
            millions=sum(p.numel() for p in model.parameters()) / 1e6,
            layers=model.config.num_hidden_layers,
            hidden=model.config.hidden_size,
            tokens=record["num_tokens"],
            kinds=sum(weight > 0 for weight in record["config"]["world"]["kind_weights"].values()),
            start=f" It began as `{start}`." if start else "",
            command=record["script"],
        )
    )
    replace_folder(made, out_dir)
