"""How the demo model is trained: `make train`. Needs the extra `train` (torch); not part of the wheel."""
