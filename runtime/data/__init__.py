"""Text to tokens to batches: text sources, tokenized corpora with digests, and a batch as a function of seed and step.

Front door: `runtime.data.corpus.build` writes a corpus, `runtime.data.batches.training_rows` reads its rows.
"""
