"""Language models: find, load, look inside, change on the way, generate, identify.

``config``, ``inspect``, ``sites``, ``families`` and ``fingerprint`` answer without importing torch;
``language_model`` needs it.
"""
