"""A small language whose every token carries known concepts.

Modules: `config` (the dials), `generate` (documents, floor), `concepts` and `truth` (what holds at
each token), `tasks` (labelled texts), `tokenizer`, `train` and `report` (a model that learned it),
`kinds` (one grammar per file). Import what you need from them; nothing is loaded here, so that the
text side stays free of torch.
"""
