"""The frozen teacher, either live or replayed from a recording."""
