"""Text to tokens to batches: text sources, tokenized corpora with digests, and the data loader and its sampler.

Front door: `runtime.data.corpus.build` tokenizes a corpus, `runtime.data.batches.training_rows` loads the rows of a
batch.
"""
