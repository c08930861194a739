"""Sparse autoencoders on language models: compute, with no orchestrator in sight."""
