"""Write a trained model as a Hugging Face folder that any loader reads."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_lib.synthetic.model_folder import begin_folder, replace_folder, save_model
from sae_lib.synthetic.world.tokenizer import save_tokenizer

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
