import pytest
import torch

from sae_lib.explain.examples import ExamplesConfig, choose_examples, read_windows
from sae_lib.explain.statistics import LatentStatistics


def chosen_of(cfg: ExamplesConfig, corpus, z: torch.Tensor, segments: torch.Tensor):
    statistics = LatentStatistics(z.shape[1], 40, cfg.num_candidates)
    rows = torch.arange(len(z))
    statistics.update(z, rows, corpus.held.tokens.flatten(), segments)
    latents = torch.arange(z.shape[1])
    return choose_examples(cfg, corpus, latents, statistics.candidates(latents))


def one_context(packed, tokens: list[int]):
    """A context with one document and no special tokens."""
    corpus = packed([[4] * len(tokens)], len(tokens))
    corpus.held.tokens[0] = torch.tensor(tokens)
    return corpus


def test_with_a_buffer_positions_2_and_6_are_taken_and_no_third(packed):
    corpus = one_context(packed, [4, 5, 6, 7, 8, 9, 10, 11])
    z = torch.tensor([[0.0, 5, 9, 8, 0, 0, 7, 0]]).T
    cfg = ExamplesConfig(num_examples=3, radius=1, apart="buffer", buffer=1)
    _, windows = chosen_of(cfg, corpus, z, torch.arange(8))
    assert windows.rows[:, 1].tolist() == [2, 6]


def test_with_a_buffer_the_ends_of_a_context_are_never_centres(packed):
    corpus = one_context(packed, [4, 5, 6, 7, 8, 9, 10, 11])
    z = torch.tensor([[9.0, 5, 0, 0, 0, 0, 4, 8]]).T
    cfg = ExamplesConfig(num_examples=3, radius=1, apart="buffer", buffer=1)
    _, windows = chosen_of(cfg, corpus, z, torch.arange(8))
    assert windows.rows[:, 1].tolist() == [1, 6]


def test_a_document_gives_at_most_one_example_even_across_contexts(packed):
    corpus = packed([[5, 6, 7, 8, 9, 10], [11, 12]], 4)  # document 0 fills two contexts
    z = torch.zeros(12, 1)
    z[[1, 5, 10], 0] = torch.tensor([3.0, 4.0, 1.0])
    context = torch.arange(12) // 4
    segments = context * 100 + corpus.held.document.flatten()
    _, windows = chosen_of(ExamplesConfig(radius=1), corpus, z, segments)
    assert windows.rows[:, 1].tolist() == [5, 10]
    assert windows.document.tolist() == [0, 1]
    assert windows.position.tolist() == [5, 2]


def test_a_text_that_repeats_is_shown_once(packed):
    corpus = packed([[5, 6, 7], [5, 6, 7], [5, 6, 8]], 5)
    z = torch.zeros(15, 1)
    z[[1, 6, 11], 0] = torch.tensor([1.0, 2.0, 0.5])
    _, windows = chosen_of(ExamplesConfig(radius=2), corpus, z, torch.arange(15) // 5)
    assert windows.document.tolist() == [1, 2]
    _, windows = chosen_of(ExamplesConfig(radius=1), corpus, z, torch.arange(15) // 5)
    assert windows.document.tolist() == [1]  # a shorter window no longer sees the difference


def test_repeats_do_not_use_up_the_wanted_examples(packed):
    corpus = packed([[5, 6, 7]] * 6 + [[8, 9, 10], [11, 12, 13]], 5)
    z = torch.zeros(40, 1)
    z[torch.arange(2, 40, 5), 0] = torch.arange(8, 0, -1).float()
    _, windows = chosen_of(
        ExamplesConfig(num_examples=3, radius=1), corpus, z, torch.arange(40) // 5
    )
    assert windows.document.tolist() == [0, 6, 7]


def test_a_window_stays_inside_its_document(packed):
    corpus = packed([[5, 6, 7], [8, 9]], 9)
    windows = read_windows(corpus, torch.tensor([3, 6]), radius=3)
    shown = [t[i].tolist() for t, i in zip(windows.token_ids, windows.inside, strict=True)]
    assert shown == [[1, 5, 6, 7, 2], [1, 8, 9, 2]]
    assert windows.position.tolist() == [3, 1]


@pytest.mark.parametrize("num_examples", [1, 2, 5])
def test_no_more_examples_are_taken_than_asked_for(packed, num_examples):
    corpus = packed([[i, i + 1, i + 2] for i in range(5, 13)], 5)
    z = torch.zeros(40, 2)
    z[torch.arange(2, 40, 5)] = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    latents, _ = chosen_of(
        ExamplesConfig(num_examples=num_examples), corpus, z, torch.arange(40) // 5
    )
    assert latents.tolist() == [0] * num_examples + [1] * num_examples
