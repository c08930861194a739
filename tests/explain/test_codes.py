import pytest
import torch

from sae_lib.explain.code_log import CodeLog, find
from sae_lib.explain.codes import Hits, entries_per_token, hits_in, hits_of
from sae_lib.saes.jumprelu import JumpReLUConfig
from sae_lib.saes.topk import TopKConfig


def coder_of(d_in: int, d_sae: int, k: int, bias: float = 0.1):
    coder = TopKConfig(d_in=d_in, d_sae=d_sae, k=k, aux_k=4, seed=3).build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        coder.b_enc.copy_(bias * torch.randn(d_sae, generator=generator))
        coder.b_dec.copy_(torch.randn(d_in, generator=generator))
    return coder


def dense_of(hits: Hits, num_tokens: int, d_sae: int) -> torch.Tensor:
    z = torch.zeros(num_tokens, d_sae)
    z[hits.token, hits.latent] = hits.value
    return z


@pytest.mark.parametrize(
    ("num_tokens", "d_in", "d_sae", "k"),
    [(37, 8, 64, 4), (1100, 16, 1024, 7), (600, 32, 2051, 20), (0, 8, 64, 4), (5, 8, 16, 3)],
)
@pytest.mark.parametrize("is_rounded", [False, True])
def test_what_is_on_is_what_encode_says(monkeypatch, num_tokens, d_in, d_sae, k, is_rounded):
    monkeypatch.setattr("sae_lib.explain.codes.rounds", lambda x, encoder: is_rounded)
    monkeypatch.setattr("sae_lib.explain.codes._PIECE_ENTRIES", 2**17)
    coder = coder_of(d_in, d_sae, k)
    x = torch.randn(num_tokens, d_in, generator=torch.Generator().manual_seed(2))
    hits = hits_of(coder, x)
    with torch.no_grad():
        z = coder.encode(x)
    torch.testing.assert_close(dense_of(hits, num_tokens, d_sae), z, rtol=1e-5, atol=1e-5)
    assert len(hits.value) == int((z > 0).sum())
    order = hits.token * d_sae + hits.latent
    assert torch.equal(order, order.sort().values)


def test_rounding_never_loses_one_of_the_largest_however_near_they_are(monkeypatch):
    """All latents within the error of bfloat16: the choice must still be made in float32."""
    monkeypatch.setattr("sae_lib.explain.codes.rounds", lambda x, encoder: True)
    coder = coder_of(64, 256, 8, bias=0.0)
    with torch.no_grad():
        noise = torch.randn(256, 64, generator=torch.Generator().manual_seed(5))
        coder.W_enc.copy_(torch.ones(256, 64) / 8 + 1e-3 * noise)
        coder.b_dec.zero_()
    x = torch.rand(50, 64, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        z = coder.encode(x)
    torch.testing.assert_close(dense_of(hits_of(coder, x), 50, 256), z, rtol=1e-5, atol=1e-6)


def test_tokens_with_few_positive_latents_have_few_hits():
    coder = coder_of(8, 64, 4)
    with torch.no_grad():
        coder.b_enc.fill_(-100.0)
        coder.b_enc[[3, 60]] = 100.0
    hits = hits_of(coder, torch.randn(9, 8))
    assert hits.latent.tolist() == [3, 60] * 9
    with torch.no_grad():
        coder.b_enc.fill_(-100.0)
    assert len(hits_of(coder, torch.randn(9, 8)).value) == 0


def test_of_equal_latents_exactly_k_are_kept():
    coder = coder_of(8, 64, 4)
    with torch.no_grad():
        coder.W_enc.zero_()
        coder.b_enc.fill_(1.0)
    hits = hits_of(coder, torch.randn(5, 8))
    assert torch.bincount(hits.token).tolist() == [4] * 5


def test_any_coder_is_read_by_its_encode():
    coder = JumpReLUConfig.example().build()
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = coder.encode(x)
    assert torch.equal(dense_of(hits_of(coder, x), 20, 32), z)
    assert entries_per_token(coder) == 32
    assert entries_per_token(coder_of(8, 1024, 4)) == 32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_passed_on_to_be_refused(bad):
    coder = coder_of(8, 64, 4)
    x = torch.randn(6, 8)
    x[2, 1] = bad
    assert not torch.isfinite(hits_of(coder, x).value).all()
    z = torch.tensor([[0.0, float("nan"), 2.0, -1.0]])
    assert hits_in(z).latent.tolist() == [1, 2]


def test_codes_are_found_again_and_what_was_off_is_zero():
    with CodeLog(10, 1000) as log:
        log.add(
            Hits(torch.tensor([0, 0, 2]), torch.tensor([1, 9, 4]), torch.tensor([1.0, 2.0, 3.0])),
            torch.tensor([5, 6, 7]),
        )
        log.add(Hits(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0])), torch.tensor([20]))
        found = log.look_up(torch.tensor([1, 4]), torch.tensor([[4, 5, 20], [7, 7, 8]]))
    assert found.tolist() == [[0, 1, 4], [3, 3, 0]]


def test_a_log_that_would_grow_too_large_gives_up():
    hits = Hits(torch.zeros(5).long(), torch.arange(5), torch.ones(5))
    with CodeLog(10, 12 * 9) as log:
        log.add(hits, torch.tensor([0]))
        assert log.is_whole
        log.add(hits, torch.tensor([1]))
        assert not log.is_whole
        log.add(hits, torch.tensor([2]))
    with CodeLog(10, 100) as log:  # nothing ever fired
        assert log.look_up(torch.tensor([0]), torch.tensor([[3]])).tolist() == [[0]]


def test_nothing_is_found_among_no_keys():
    none = torch.zeros(0, dtype=torch.int64).numpy()
    assert find(none, none.astype("float32"), torch.tensor([3])).tolist() == [0]
