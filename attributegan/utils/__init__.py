"""What every part needs and what knows of none: files, collectives, memory, pages."""
