"""How the cost of the whole service grows, one thing varied at a time."""
