"""How fast the learner's step is: beside TRL's `DPOTrainer`, and beside what the processor can do."""
