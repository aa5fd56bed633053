"""Beyond one machine: batches, serving, and a model spread over several, by means of Ray.

What decides lies in modules that know nothing of Ray: machines, placement, predict, routing.
"""
