"""A loaded model and what generates on it."""
