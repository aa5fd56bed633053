"""What test files share: checkpoints, oracles, a scripted engine, servers and terminals."""
