"""What a weight becomes: number formats, tiles, and the converter from published checkpoints."""
