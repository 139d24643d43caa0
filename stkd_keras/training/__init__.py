"""A training run: its loop, checkpoints, directory, logs and model card."""
