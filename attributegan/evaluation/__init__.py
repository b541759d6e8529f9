"""Evaluation of generators: real tiles and the assessed attributes (`reference`), generated tiles (`samples`), results (`scores`).

Uses `attributegan.metrics` for every number. Reads no dataset files: real tiles are arrays, through `reference.Split`.
"""

from attributegan.evaluation.tile_sets import evaluate as evaluate
