"""What goes wrong between machines, in words that hold no secret."""

from sae_lib.errors import SaeError


class RemoteUnavailable(SaeError):
    """The remote store did not answer, also when it was asked again; later it may."""

    is_transient = True

    def __init__(self, what: str, problem: str) -> None:
        self.what, self.problem = what, problem
        super().__init__(
            f"{what} failed: {problem} Check SAE_REMOTE and the network, then run again."
        )
