"""``attributegan-label 2afc``: a reader study with two alternatives, a real and a generated tile (two-alternative forced choice, 2AFC).

`options` and `command` own the command line, `build` makes the pairs, `study` owns them on disk, `answers` the readers' choices, `scores`
the statistics, `results` the exported files, `app` the pages.
"""
