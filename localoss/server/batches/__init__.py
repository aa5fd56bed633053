"""Batches in OpenAI's file format: a request a line, an answer a line."""
