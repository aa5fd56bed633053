"""OpenAI's HTTP API on a local model. The web framework is imported here only, and needs localoss[server]."""
