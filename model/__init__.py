"""The model and its parallelism, in torch: a Llama whose blocks have two visible collectives per sub-layer.

Tensor, sequence and pipeline parallelism, ZeRO-1's AdamW with overlapped communication, fused kernels behind one
registry, Hugging Face weights in and out. Front door: `model.transformer.Stage`, trained through
`model.pipeline_parallel.Pipeline` and `model.zero.AdamW`.
"""
