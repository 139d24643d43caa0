"""Reads and writes weights of other frameworks."""
