"""Network definitions: shared blocks and one module per family."""
