"""Training of one SAE by several processes, one for each device.

Imports nothing heavy itself: `sae_lib.training.distributed.config` describes devices without torch.
"""
