"""Compiled loops over arrays and addresses. They know no model, no file and no configuration."""
