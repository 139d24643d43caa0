"""The command line of train.py and evaluate.py."""
