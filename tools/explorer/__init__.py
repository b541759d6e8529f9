"""The attribute explorer: link state (`state`), tile (`drawing`) of a model (`model`), predicted levels and nearest real tiles
(`predictions`), quiz (`quiz`), HTML (`page`), HTTP routes (`server`) and access control (`auth`).

The server is stateless: each response depends only on the request.
"""
