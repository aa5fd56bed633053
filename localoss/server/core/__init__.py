"""What all APIs share: the engine's queue, answers in pieces, errors, limits, stored responses."""
