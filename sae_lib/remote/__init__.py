"""A store that several machines share: finished artefacts and warehouse rows, through fsspec.

Loading this package loads no client; the one for the URL's protocol is loaded by `Remote.open`.
"""

from sae_lib.remote.errors import RemoteUnavailable
from sae_lib.remote.remote import Moved, Remote
from sae_lib.remote.settings import remote_from_env

__all__ = ["Moved", "Remote", "RemoteUnavailable", "remote_from_env"]
