"""The labeler: tiles of a folder (`tiles`), their order per rater (`queue`), answers on disk (`ratings`), rater agreement (`agreement`),
merged levels and CSV files (`consensus`), predictions shown after an answer (`predictions`) and HTTP routes (`app`).

The ratings file is the only state; everything else can be rebuilt from it.
"""
