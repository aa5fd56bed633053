"""/localoss/tokens: what `localoss run` and `chat` ask a running server."""
