"""gpt-oss's chat format, and the turns of a conversation on an engine."""
