"""Safe file access: atomic writes, locks, JSON and checks of untrusted files."""
