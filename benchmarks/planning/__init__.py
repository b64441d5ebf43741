"""How well `iris-ray plan` predicts, and what it reckons with."""
