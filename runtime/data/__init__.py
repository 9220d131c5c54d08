"""Tokens to batches: built corpora with their digests, tokenizers, and the data loader and its sampler.

Front door: `runtime.data.corpus.tokens` opens a corpus, `runtime.data.batches.training_rows` loads the rows of a batch;
`runtime.data.build` builds corpora.
"""
