"""How many pairs a second go through the sample buffer, with generators that only sleep."""
