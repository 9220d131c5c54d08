"""The nouns: every document that isoplan reads or writes, as frozen types with units, sources and JSON Schema."""
