"""Secrets come from the environment, and leave it for nothing but the connection itself."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from sae_lib.errors import BadInput

OPTIONS = "SAE_REMOTE_OPTIONS"
REFERENCE = "env:"
"""Start of a value that names the environment variable it stands for."""

_SECRET_OPTION = re.compile(r"secret|passw|token|credential|connection_string|(^|_)(key|sas)", re.I)
_SECRET_VARIABLE = re.compile(
    r"SECRET|PASSW|TOKEN|CREDENTIAL|CONNECTION_STRING|(ACCESS|ACCOUNT|API|PRIVATE)_?KEY|SAS_", re.I
)

SHORTEST_SECRET = 6
"""Characters. Blanking out anything shorter would blank out ordinary words."""

BLANK = "***"


def resolve(options: Mapping[str, Any], where: str = OPTIONS) -> tuple[dict[str, Any], list[str]]:
    """``options`` with references to the environment replaced, and the texts that must not show.

    Raises `BadInput` for a secret that is written out, without repeating it.
    """
    resolved: dict[str, Any] = {}
    secrets: list[str] = []
    for name, value in options.items():
        key = f"{where}.{name}"
        if isinstance(value, Mapping):
            resolved[name], more = resolve(value, key)
            secrets += more
        elif isinstance(value, str) and value.startswith(REFERENCE):
            variable = value.removeprefix(REFERENCE)
            if variable not in os.environ:
                raise BadInput("The environment has no such variable.", key=key, value=value)
            resolved[name] = os.environ[variable]
            secrets.append(os.environ[variable])
        elif isinstance(value, str) and _SECRET_OPTION.search(name):
            raise BadInput(
                "A secret is not written here; put it into an environment variable, and "
                f'"{REFERENCE}NAME" here.',
                key=key,
            )
        else:
            if isinstance(value, str):
                refuse_user(value, key)
            resolved[name] = value
    return resolved, secrets


def refuse_user(url: str, key: str) -> None:
    """Raise for a URL with a user or a password in it."""
    try:
        has_user = "://" in url and "@" in urlsplit(url).netloc
    except ValueError:
        has_user = True
    if has_user:
        raise BadInput(
            "A URL must hold no user and no password; they belong into environment variables that "
            f"{OPTIONS} names.",
            key=key,
        )


def environment_secrets() -> list[str]:
    """Values of environment variables whose names say that they are secret."""
    return [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)]


def blanked(text: str, secrets: Iterable[str]) -> str:
    """``text`` without ``secrets`` and without those of the environment."""
    every = {*secrets, *environment_secrets()}
    for secret in sorted(every, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            for form in (secret, quote(secret, safe=""), quote(secret)):
                text = text.replace(form, BLANK)
    return text
