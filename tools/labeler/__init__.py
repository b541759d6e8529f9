"""The label page: tiles of a folder (`tiles`), who sees which next (`queue`), answers on disk (`ratings`), what raters agree on
(`agreement`), the levels that go into the CSV (`consensus`), predictions shown after an answer (`predictions`) and the pages (`app`).

The answers are the only state. Everything else can be rebuilt from them.
"""
