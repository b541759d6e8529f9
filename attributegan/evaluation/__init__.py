"""An evaluation: real tiles and what can be judged on them (`real`), what a generator makes (`generated`), the result (`result`).

Uses `attributegan.metrics` for every number. Reads no files of a data set: real tiles come as arrays through `real.Split`.
"""
