"""Corpora from text and from tokens that exist, on all cores and in bounded memory.

Front door: `runtime.data.build.corpus.build`.
"""
