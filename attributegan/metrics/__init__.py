"""Metrics of generated tiles: image quality, control by the attributes, memorisation.

`quality` and `control` are pure functions of arrays; `features` and `predictor` turn tiles into such arrays. The evaluation that uses
them is in `attributegan.evaluation` and `tools.evaluate`.
"""
