"""Published evaluations, run by inspect-ai (extra [eval]) on the batched engine."""
