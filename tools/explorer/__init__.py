"""The attribute explorer: a state in a link (`state`), its tile (`drawing`) by a model (`model`), what is read off it (`reading`), a quiz
(`quiz`), the pages (`page`), the answers to a browser (`server`) and who may have them (`guard`).

The server keeps nothing of its visitors: every answer is a function of the request.
"""
