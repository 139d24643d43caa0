"""Training runs: loop, checkpoints, directory, logs and model card."""
