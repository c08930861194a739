"""Training: one pass over the activations teaches many sparse coders.

Imports nothing heavy itself: `sae_lib.training.config` describes a training without torch.
"""
