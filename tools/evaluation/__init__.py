"""Parts of attributegan-evaluate."""
