"""Network definitions: the shared blocks, and one module per family."""
