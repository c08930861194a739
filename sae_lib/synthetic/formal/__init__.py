"""Formal languages whose every string has a known probability and known structure.

Modules: `pcfg` (probabilistic grammars: sampling, exact probabilities, lengths), `dyck`, `expr` and
`english` (one language each, with what is true at each token), `language` (seeded strings with
disjoint splits, entropy floor), `train` and `report` (small GPT-2s that learned them). Nothing is
loaded here, so that the text side stays free of torch.
"""
