"""What lies on the disk: the model directory's files, number formats and tiles, and names in checkpoints."""
