"""The demo model: a tiny gpt-oss with learned weights, so that everything can be tried at once."""
