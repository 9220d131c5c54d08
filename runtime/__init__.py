"""The verbs: text to tokens, training, checkpoints, records, launching and auditing. Everything that touches the world."""
