"""The attribute explorer: a state in a link (`state`), its tile (`drawing`), what is read off it (`reading`), a quiz (`quiz`),
the pages (`page`) and who may see them (`server`).

The server keeps nothing of its visitors: every answer is a function of the request.
"""
