"""The frozen teacher, live or replayed from a recording."""
