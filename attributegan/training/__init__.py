"""Training: the loop, the phases of a step, losses, augmentation, counter-based random numbers, EMA."""
