"""Helpers without dependencies on other subpackages: files, collectives, memory allocation, precision, random numbers, HTML pages."""
