"""Time limits of tests grow with how slow the machine is."""

import pytest
import time_limits


@pytest.mark.parametrize(("slower", "workers", "factor"), [(0.5, 1, 1.0), (2.4, 1, 2.4), (2.4, 2, 4.8), (99.0, 1, 10.0), (99.0, 2, 20.0)])
def test_factor_is_between_1_and_20(slower: float, workers: int, factor: float) -> None:
    assert time_limits.combined(slower, workers) == factor


def test_factor_is_measured_once_and_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert time_limits.factor() >= 1, "the session has measured it"
    monkeypatch.delenv(time_limits.VARIABLE)
    monkeypatch.setattr(time_limits, "_measure", lambda: {name: 3 * usual for name, usual in time_limits.REFERENCE_S.items()})
    assert time_limits.seconds(60) == 60
    assert time_limits.calibrate(workers=2) == 6.0 and time_limits.seconds(60) == 360
    monkeypatch.setattr(time_limits, "_measure", lambda: pytest.fail("measured again"))
    assert time_limits.calibrate() == 6.0


def test_slowest_part_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(time_limits.VARIABLE)
    monkeypatch.setattr(time_limits, "_measure", lambda: time_limits.REFERENCE_S | {"start": 4 * time_limits.REFERENCE_S["start"]})
    assert time_limits.calibrate() == 4.0
