"""From text to training batches: corpus, tokens, harvest, store, order, batches.

    corpus      which text there is, and which of it is held out        (imports no torch)
    tokens      text as contexts of token ids, with what is kept of them
    harvest     one pass of a model writes the activations of all its sites
    store       those activations, memory-mapped
    stats       their mean, variance and norms, in float64
    order       which rows make up batch i: a function of the seed and of i
    batches     those batches, from a store or from the live model
    labelled    texts with labels, and one vector per text

Private modules (with an underscore) hold file formats and packing.
"""
