"""The maths: a LLaMA-style model whose parallelism is two visible collectives a sub-layer, and ZeRO-1's AdamW."""
