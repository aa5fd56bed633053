"""What a model does on this machine, measured: speed, time by part, loss on a text, second moments."""
