"""The model card of a generator, the README.md that the Hugging Face hub shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from attributegan.attributes import Attribute, AttributeSchema

# The last two identify the library that loads the folder.
TAGS = ["histopathology", "gan", "conditional-image-generation", "pytorch_model_hub_mixin", "model_hub_mixin"]

_TEXT = """\
---
{header}---

# AttributeGAN generator, {size} px

Generates H&E tiles of {size} x {size} px from one level for each of {count} attributes and a latent vector that determines the rest.
The network is AttributeGAN (Ye et al., *Multi-attribute controllable generative model for histopathology image synthesis*,
MICCAI 2021, [arXiv 2111.06398](https://arxiv.org/abs/2111.06398)).

**The tiles are synthetic. They show no patient and are not for diagnosis.**

## Attributes

`levels` has one column per attribute, in this order. Fractional levels (float) between two assessable ones are allowed.

| column | attribute | levels |
|---|---|---|
{attributes}

## Use

```python
import torch
from attributegan.export import AttributeGenerator
from attributegan.sampling.generate import generate
from attributegan.sampling.latents import latents_for

generator = AttributeGenerator.from_pretrained("PATH_OR_HUB_ID")
latents = latents_for(seed=0, indices=range(4), latent_dim=generator.latent_dim)
levels = torch.tensor([{example}]).expand(4, -1)
tiles = generate(generator, latents, levels)  # uint8, (4, {size}, {size}, 3)
```

## Training data

{data}

## Metrics

{metrics}

## Intended use and limits

For research and teaching: to study models of tissue, to test analysis software, to augment training data.
Not for diagnosis or any other clinical decision, and not to be shown as tissue of a patient.
The generator is limited to its training tiles: it does not generalise to stains, scanners, organs or levels that they lack.
Measure whether generated tiles have the requested levels before relying on them.

## Licence

{licence}
"""


@dataclass(frozen=True)
class CardFacts:
    """The facts of a card beyond the network itself; the card states which ones are missing."""

    data: str = ""  # description of the training data
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    licence: str = ""  # hub identifier, such as cc-by-4.0


def model_card(schema: AttributeSchema, image_size: int, facts: CardFacts) -> str:
    """Renders the card as Markdown with the YAML header that the hub reads."""
    header = {"library_name": "attributegan", "tags": TAGS} | ({"license": facts.licence} if facts.licence else {})
    return _TEXT.format(
        header=yaml.safe_dump(header, sort_keys=False),
        size=image_size,
        count=len(schema.attributes),
        attributes="\n".join(f"| {k} | `{attribute.name}` | {_levels(attribute)} |" for k, attribute in enumerate(schema.attributes)),
        example=[attribute.assessable[-1] for attribute in schema.attributes],
        data=facts.data or "Not recorded.",
        metrics=_table(facts.metrics) if facts.metrics else "Not recorded.",
        licence=facts.licence
        or "Not specified. Choose one before sharing this model; the terms of the training tiles may limit the choice.",
    )


def _levels(attribute: Attribute) -> str:
    suffix = {attribute.not_assessable: " (not assessable)"}
    quote = ("“", "”") if attribute.numbered else ("", "")  # levels are indices here, even if names are numbers
    return ", ".join(f"{level} {name.join(quote)}{suffix.get(level, '')}" for level, name in enumerate(attribute.levels))


def _table(metrics: Mapping[str, float | str]) -> str:
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in metrics.items())])
