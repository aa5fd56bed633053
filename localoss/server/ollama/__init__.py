"""/api/chat and its kin, in Ollama's words."""
