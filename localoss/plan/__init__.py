"""What a model takes of memory and disk, and what the machine has: no Numba, so that a plan comes at once."""
