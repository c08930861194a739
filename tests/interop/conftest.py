import numpy as np
import pytest

from tests.interop.drawn_weights import Drawn


@pytest.fixture
def drawn() -> Drawn:
    rng = np.random.default_rng(0)
    d_in, d_sae, tokens = 6, 20, 200
    W_dec = rng.normal(size=(d_sae, d_in)) * rng.uniform(0.3, 3.0, (d_sae, 1))
    return Drawn(
        rng.normal(size=(d_in, d_sae)).astype(np.float32),
        rng.normal(size=d_sae).astype(np.float32),
        W_dec.astype(np.float32),
        5 * rng.normal(size=d_in).astype(np.float32),
        rng.uniform(0.1, 2.0, d_sae).astype(np.float32),
        3 * rng.normal(size=(tokens, d_in)).astype(np.float32),
    )
