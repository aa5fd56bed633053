"""gpt-oss itself: its weights in memory, the forward pass, and the KV cache."""
