"""Numbers about generated tiles: how real they look, whether they obey, whether they were only remembered.

`quality` and `control` are pure functions of arrays; `features` and `predictor` turn tiles into such arrays. What is evaluated when,
and what a report shows, is in `tools.evaluate`.
"""
