"""Gemma Scope: a folder with ``params.npz``, such as ``layer_12/width_16k/average_l0_82``.

    pre = x W_enc + b_enc,  z = pre where pre > threshold,  x_hat = z W_dec + b_dec

The normalisation of training is in the weights already, and b_dec is not subtracted from x. There
is no config: layer and site come from the path, where it has the folders of the release. SAEs of
the embedding divide W_enc and multiply W_dec by sqrt(d_in). Transcoders are refused.

Lieberum et al. 2024, https://arxiv.org/abs/2408.05147
"""

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.interop.imported import REMEDY, Imported, Weights, coder_of, pick

TENSORS = "params.npz"

SITES = {"res": "resid_post", "mlp": "mlp_out", "att": None}
"""Kind of site by the end of a release's name; att is inside of attention, which is no site."""

_RELEASE = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<tuning>pt|it)-(?P<place>res|mlp|att)")


def read_gemma_scope(folder: Path) -> Imported:
    """The SAE in ``folder``. Raises `MissingFile`, `BadInput` for a transcoder, `CorruptData`."""
    path = folder / TENSORS
    parts = folder.resolve().parts
    if any("transcoder" in part for part in parts):
        raise BadInput("this is a transcoder; SAEs of one place can be read.", file=folder)
    arrays = _arrays(path)
    tensors = {
        name.lower(): torch.from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
    }
    W_enc, W_dec = pick(tensors, "w_enc", path).float().T, pick(tensors, "w_dec", path).float()
    if "embedding" in parts:
        root = math.sqrt(W_enc.shape[1])
        W_enc, W_dec = W_enc / root, W_dec * root
    weights = Weights(
        W_enc=W_enc,
        b_enc=pick(tensors, "b_enc", path).float(),
        W_dec=W_dec,
        b_dec=pick(tensors, "b_dec", path).float(),
        is_centred=False,
        threshold=pick(tensors, "threshold", path).float(),
    )
    return Imported(coder_of(weights, path), _facts(parts))


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFile(f"there is no SAE here: {TENSORS} is missing.", file=path)
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise CorruptData(path, f"this is not an archive of arrays ({error}).", REMEDY) from error


def _facts(parts: tuple[str, ...]) -> dict[str, Any]:
    release = next((match for part in parts if (match := _RELEASE.fullmatch(part))), None)
    layer = next(
        (match[1] for part in parts if (match := re.fullmatch(r"layer_(\d+)", part))), None
    )
    l0 = next(
        (match[1] for part in parts if (match := re.fullmatch(r"average_l0_(\d+)", part))), None
    )
    kind = SITES[release["place"]] if release else None
    model = None
    if release:
        model = f"google/gemma-2-{release['size']}{'-it' if release['tuning'] == 'it' else ''}"
    return {
        "format": "gemma_scope",
        "architecture": "jumprelu",
        "model": model,
        "hook": None,
        "site": f"{kind}.{layer}" if kind and layer else None,
        "average_l0": int(l0) if l0 else None,
    }
