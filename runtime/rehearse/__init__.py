"""A rehearsal: any rank of any layout runs a training step without values; its memory and communication are recorded.

Front door: `runtime.rehearse.step.rehearse`.
"""
