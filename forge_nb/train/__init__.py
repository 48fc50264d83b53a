"How a model is made: architecture, loop, checkpoints, bases, fine-tuning, estimates"
