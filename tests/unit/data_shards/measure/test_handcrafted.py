"""Handcrafted features: nuclei, stain and texture change the vector, and the vector is finite where there is tissue."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.phantoms import render

pytest.importorskip("skimage", reason="needs attributegan[measure]")

from data_shards.measure import handcrafted
from tools.evaluation import feature_networks

SIZE = 128


def phantoms(levels: tuple[int, ...], count: int = 6) -> np.ndarray:
    return np.stack([render.render(levels, SIZE, 5, number) for number in range(count)])


def test_vectors_are_finite_on_tissue_and_the_same_for_the_same_tile() -> None:
    tiles = phantoms((2, 1, 1, 1, 2))
    found_ND = handcrafted.vectors(tiles)
    assert found_ND.dtype == np.float32 and np.isfinite(found_ND).all()
    np.testing.assert_array_equal(found_ND, handcrafted.vectors(tiles))


def test_crowding_changes_the_number_of_nuclei() -> None:
    few_ND, many_ND = (handcrafted.vectors(phantoms((level, 1, 1, 1, 1))) for level in (1, 4))
    assert few_ND[:, 0].mean() < many_ND[:, 0].mean() and few_ND[:, 1].mean() < many_ND[:, 1].mean()


def test_stain_and_texture_change_the_vector() -> None:
    tile_HWC = phantoms((2, 1, 1, 1, 2), 1)[0]
    blue_HWC = tile_HWC[..., [2, 1, 0]]
    rng = np.random.default_rng(0)
    noisy_HWC = np.clip(tile_HWC + rng.normal(0, 25, tile_HWC.shape), 0, 255).astype(np.uint8)
    plain_D, blue_D, noisy_D = handcrafted.vectors(np.stack([tile_HWC, blue_HWC, noisy_HWC]))
    stain, texture = slice(12, 35), slice(35, None)
    assert np.abs(plain_D - blue_D)[stain].max() > 0.1
    assert np.abs(plain_D - noisy_D)[texture].max() > 0.1


def test_a_white_tile_has_no_nuclei_and_undefined_shapes() -> None:
    (vector_D,) = handcrafted.vectors(np.full((1, SIZE, SIZE, 3), 255, np.uint8))
    assert vector_D[0] == vector_D[1] == 0 and np.isnan(vector_D[2:11]).all() and np.isfinite(vector_D[11:]).all()


def test_they_are_a_feature_network_of_an_evaluation() -> None:
    network = feature_networks.load("handcrafted")
    tiles = phantoms((2, 1, 1, 1, 2), 3)
    expected_ND = handcrafted.vectors(tiles)
    np.testing.assert_array_equal(network.unscaled(tiles), expected_ND)
    assert network.standardise and network.size == SIZE
    assert network.unscaled(tiles[:, ::2, ::2]).shape == expected_ND.shape
