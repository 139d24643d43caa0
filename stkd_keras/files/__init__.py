"""Atomic writes, locks, JSON, and checks of untrusted files."""
