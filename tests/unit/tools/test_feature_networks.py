"""The network that judges: never one whose features trained the model, unless requested."""

from __future__ import annotations

import pytest

from attributegan.config import Config, LossConfig
from attributegan.models import perceptual
from tools.evaluation.feature_networks import AUTO, choose, trained_on


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ({"a": ""}, "efficientnet-lite0"),
        ({}, "efficientnet-lite0"),  # tile sets alone
        ({"a": "efficientnet-lite0", "b": ""}, "efficientnet-lite1"),
        ({"a": "efficientnet-lite1"}, "efficientnet-lite0"),
        ({"a": "efficientnet-lite0", "b": "efficientnet-lite1"}, "efficientnet-lite2"),
    ],
)
def test_the_default_trained_none_of_the_models(networks: dict[str, str], expected: str) -> None:
    assert choose(AUTO, networks) == expected


def test_the_trained_network_is_refused_unless_allowed() -> None:
    networks = {"first": "efficientnet-lite0", "second": ""}
    with pytest.raises(ValueError, match=r"--features efficientnet-lite0: first was trained on these features.*--allow-trained-features"):
        choose("efficientnet-lite0", networks)
    assert choose("efficientnet-lite0", networks, allow=True) == "efficientnet-lite0"
    assert choose("random", networks) == "random" and choose("efficientnet-lite2", networks) == "efficientnet-lite2"
    with pytest.raises(ValueError, match="use random or handcrafted"):
        choose(AUTO, {str(number): f"efficientnet-lite{number}" for number in range(3)})


def test_the_configuration_names_the_network() -> None:
    assert trained_on(Config(loss=LossConfig(mmd=1))) == perceptual.NETWORK and trained_on(Config()) == ""
