"""The verbs, which touch the world: text to tokens, training, checkpoints, records, launching and auditing."""
