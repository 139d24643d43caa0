"""Inspects and rewrites Keras classifiers: outputs, inner features, batch normalization."""
