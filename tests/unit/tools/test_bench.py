"""The benchmark harness, and every benchmark once at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shards import pixels_of

from attributegan.utils.precision import native_bf16
from tools.bench import main
from tools.benchmarks import train
from tools.benchmarks.contender import NetworkSettings
from tools.benchmarks.harness import Result, interleaved
from tools.benchmarks.scaling import Step


def test_contenders_run_in_turns_and_the_first_turn_warms_up() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return len(calls)

    values = interleaved({"a": lambda: contender("a"), "b": lambda: contender("b")}, 2)
    assert calls == ["a", "b"] * 3 and values == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    result = Result("name", "s", values, [("b", "a")])
    assert result.ratios() == {"b / a": [4 / 3, 6 / 5]}
    assert "b / a" in result.lines()[3] and "(1.2 to 1.333)" in result.lines()[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "contenders"),
    [
        (["read", "--count", "64", "--workers", "0"], {"shards", "webdataset", "single PNGs"}),
        (["pack", "--count", "60", "--workers", "1"], {"pack", "tar", "tar and sync"}),
        (["start", "--rows", "10000"], {"first batch", "first batch at image 10^8"}),
    ],
)
def test_benchmarks_measure_every_contender(
    tmp_path: Path, arguments: list[str], contenders: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.fromarray(pixels_of(0, 500)).save(tmp_path / "images" / "t.jpg")
    images = ["--images", str(tmp_path / "images")] if arguments[0] != "start" else []
    assert main([*arguments, *images, "--repeats", "1", "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["contenders"]) == contenders and all(value > 0 for values in result["contenders"].values() for value in values)
    assert result["ratios"] and all(len(values) == 1 for values in result["ratios"].values()) and result["machine"]["cores"]
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in contenders)


def test_invalid_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "--repeats", "0"]) == 2 and "--repeats" in capsys.readouterr().err
    assert main(["read", "--count", "5"]) == 2 and "--count" in capsys.readouterr().err
    assert main(["pack", "--images", str(tmp_path)]) == 2 and "has no images" in capsys.readouterr().err
    assert main(["explore", "--count", "0"]) == 2 and "--count" in capsys.readouterr().err
    assert main(["start", "--rows", "5"]) == 2 and "--rows" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoint(tmp_path: Path) -> None:
    """Steps while a checkpoint is written, and the checkpoint is committed."""
    small = ["model.image_size=32", "model.latent_dim=16", "model.fmap_max=16", "model.fmap_inverse_coef=6"]
    assert main(["checkpoint", "--repeats", "2", "--batch", "2", "--json", str(tmp_path / "out.json"), *small]) == 0
    tree = json.loads((tmp_path / "out.json").read_text())
    assert all(seconds > 0 for contender in tree["contenders"].values() for seconds in contender)
    assert tree["facts"]["checkpoint, MB"] > 0.1
    assert all(
        a <= b for a, b in zip(*(tree["facts"][f"seconds until {what}"] for what in ("`save` returns", "it is committed")), strict=True)
    )


@pytest.mark.slow
def test_explore(tmp_path: Path) -> None:
    """Tiles through the server, a contender for each network."""
    out = tmp_path / "out.json"
    assert main(["explore", "--repeats", "1", "--count", "2", "--config", "configs/train/small.yaml", "--json", str(out)]) == 0
    contenders = json.loads(out.read_text())["contenders"]
    assert list(contenders) == ["64 px (small)"] and all(value > 0 for value in contenders["64 px (small)"])


TINY = [
    "--repeats",
    "1",
    "--batch",
    "2",
    "model.image_size=256",
    "model.latent_dim=16",
    "model.fmap_max=16",
]  # the smallest reference model
OURS = {"fp32", "bf16"} if native_bf16() else {"fp32"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "contenders", "facts"),
    [
        (
            ["train", *TINY, "--threads", "1", "--side", "rows", "train.precision=fp32", "train.channels_last=false"],
            {*OURS, "rows", "plain"},
            {"plain: GFLOP an image", "reference fp32, GFLOP/s"},
        ),
        (["sample", *TINY], {*OURS, "plain"}, set()),
        (["processes", "--apart", *TINY], {"1 process", "2 processes", "2 processes apart"}, {"gradients of both networks, MB"}),
    ],
)
def test_training_and_sampling(
    tmp_path: Path, arguments: list[str], contenders: set[str], facts: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    tree = json.loads((tmp_path / "out.json").read_text())
    assert set(tree["contenders"]) == contenders and all(value > 0 for values in tree["contenders"].values() for value in values)
    assert facts <= tree["facts"].keys() and all(tree["facts"][name] > 0 for name in facts)
    assert ("skipping bf16: this CPU has no native bf16" in capfd.readouterr().err) == (arguments[0] != "processes" and not native_bf16())
    if arguments[0] == "train":
        assert tree["facts"]["fp32: GFLOP an image"] < tree["facts"]["plain: GFLOP an image"]
        assert tree["ratios"].keys() == {f"{name} / plain" for name in (*OURS, "rows")}


@pytest.mark.parametrize(
    ("overrides", "published"),
    [([], True), (["loss.contrastive=0"], False), (["model.image_size=128"], False), (["augment.policy=[offset]"], False)],
)
def test_reference_model_is_compared_for_the_published_recipe_only(overrides: list[str], published: bool) -> None:
    settings = NetworkSettings("configs/train/published.yaml", overrides=(*TINY[4:], *overrides))
    assert train._is_published(settings) == published


@pytest.mark.slow
def test_a_contender_that_fails_to_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--repeats", "1", "train.precision=fp31"]) == 2
    assert "fp31" in capfd.readouterr().err
    assert main(["processes", "--processes", "1"]) == 2 and "--processes" in capfd.readouterr().err


def test_estimate_of_many_gpus() -> None:
    """By hand: 2 nodes of 8, 100 ms of work, 1 GB of gradients."""
    step = Step(compute_s=0.1, gradient_bytes=1e9, norms=0)
    reduce = 2 * 7 / 8 * 1e9 / 300e9 + 14 * 10e-6 + 2 * 1 / 2 * 1e9 / (12.5e9 * 0.8) + 2 * 25e-6
    assert step.seconds(16, 12.5e9) == pytest.approx((0.1 + reduce - 0.2 / 3, reduce - 0.2 / 3))
    assert step.seconds(1, 12.5e9) == (0.1, 0.0) and step.seconds(8, 12.5e9) == (0.1, 0.0)
    assert Step(0.1, 1e9, norms=0, bits=16).seconds(16, 12.5e9)[1] == pytest.approx(max(0, reduce / 2 - 0.2 / 3), abs=2e-4)
    assert Step(0.1, 1e9, norms=0, every=4).seconds(16, 12.5e9)[1] == pytest.approx((reduce - 0.2 / 3) / 4)


def test_estimate_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "--gflop", "100", "--tflops", "100", "--batch", "10", "--gradients", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Step of one GPU: 10 ms for 10 images" and lines[4].startswith("| 1 | 1,000 images/s, 100% |")
    assert lines[-1].startswith("| 1,024 |") and main(["scaling", "--batch", "0"]) == 2
