"""Which contexts a specialised SAE is trained on: those nearest to texts of a domain.

`bm25` scores words, `dense` hidden states, `tracin` gradients of an SAE; `choose` puts them
together.
"""

from sae_lib.training.retrieval.base import Chosen, best, texts_of
from sae_lib.training.retrieval.choose import choose_contexts
from sae_lib.training.retrieval.seeds import seed_texts

__all__ = ["Chosen", "best", "choose_contexts", "seed_texts", "texts_of"]
