"""A rehearsal: any rank of any layout runs the engine on shapes alone, and its memory and messages are recorded.

Front door: `runtime.rehearse.step.rehearse`.
"""
