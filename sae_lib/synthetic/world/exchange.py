"""How somebody asks and is answered, in plain documents and in the form of a chat."""

from sae_lib.synthetic.world.concepts import declare
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.writer import Writer

USER, ASSISTANT = "<user>", "<assistant>"

declare("chat-marker", "The word opens a turn of a chat.", words=(USER, ASSISTANT))
declare("user-turn", "The word belongs to what a user says.", scope="context")
declare("reply-turn", "The word belongs to a reply.", scope="context")


def user_turn(w: Writer, cfg: WorldConfig) -> None:
    """Open the turn of somebody who asks. `set_context` after it would forget the turn."""
    w.around = (*(id for id in w.around if id != "reply-turn"), "user-turn")
    w.say(USER if cfg.chat else "request :")


def reply_turn(w: Writer, cfg: WorldConfig) -> None:
    """Open the turn of whoever answers."""
    w.around = (*(id for id in w.around if id != "user-turn"), "reply-turn")
    w.say(ASSISTANT if cfg.chat else "reply :")
