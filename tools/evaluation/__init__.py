"""The parts of attributegan-evaluate."""
