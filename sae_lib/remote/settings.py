"""Which store, from the environment: SAE_REMOTE, SAE_REMOTE_OPTIONS, SAE_REMOTE_KINDS."""

import json
import os
from threading import Lock
from typing import Any

from sae_lib.errors import BadInput
from sae_lib.remote.remote import Kinds, Remote
from sae_lib.remote.secrets import OPTIONS

URL = "SAE_REMOTE"
KINDS = "SAE_REMOTE_KINDS"

_opened: dict[tuple[str, str, str], Remote] = {}
_opening = Lock()


def remote_from_env() -> Remote | None:
    """The store the environment names, or None; one and the same for the life of the process.

    ``SAE_REMOTE_OPTIONS`` is a JSON object of options of the file system, ``SAE_REMOTE_KINDS`` a
    list with commas of the kinds of artefacts to share, or of those not to, each with a ``-``.
    """
    url = os.environ.get(URL, "")
    if not url:
        return None
    options, kinds = os.environ.get(OPTIONS, ""), os.environ.get(KINDS, "")
    with _opening:
        if (url, options, kinds) not in _opened:
            _opened[url, options, kinds] = Remote.open(
                url, parse_options(options), kinds=Kinds.parse(kinds) if kinds else Kinds()
            )
        return _opened[url, options, kinds]


def parse_options(text: str) -> dict[str, Any]:
    """``SAE_REMOTE_OPTIONS`` as a mapping; what is wrong with it is said without repeating it."""
    if not text:
        return {}
    problem = 'It must be a JSON object, such as {"endpoint_url": "https://...", "key": "env:KEY"}.'
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise BadInput(problem, key=OPTIONS)
    return options
