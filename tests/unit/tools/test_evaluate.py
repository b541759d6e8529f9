"""The whole evaluation: a generator that follows its labels, a generator that ignores them, rules for what is assessed, and the report."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_features import Pooled
from shards import levels_of, make_set, number_of
from shards import rows_of as rows_of_set
from stores import web
from time_limits import seconds
from torch import Tensor, nn
from untrained_run import untrained_run

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.checkpoint import loading
from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference, samples
from attributegan.evaluation import scores as scores_module
from attributegan.metrics import control, features, predictor
from attributegan.sampling import generate, latents
from data_shards.phantoms import measure, render
from tools import evaluate
from tools.evaluation import feature_networks
from tools.evaluation import report as report_module
from tools.evaluation import run as run_module
from tools.evaluation.options import EvaluationSettings
from tools.options import settings_of
from tools.shard import main as shard_main

ROOT = Path(__file__).parents[3]
SIZE, TRAIN, HELD_OUT, SWEEPS = 64, 800, 240, 12


class Renderer(nn.Module):
    """Phantoms as a generator: the latent determines the scene; levels are followed by construction."""

    def __init__(self, follows_labels: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.follows_labels = follows_labels

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        tiles = []
        for latent_L, level_A in zip(latents_BL, levels_BA, strict=True):
            index = int.from_bytes(hashlib.sha256(latent_L.numpy().tobytes()).digest()[:4], "little")
            levels = level_A.round().int().tolist() if self.follows_labels else render.draw_levels(1, index)[0]
            tiles.append(torch.from_numpy(render.render(levels, SIZE, 99, index)))
        return torch.stack(tiles).permute(0, 3, 1, 2) / 127.5 - 1


def split(count: int, seed: int) -> reference.Split:
    levels = render.draw_levels(count, seed).astype(np.int64)

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([render.render(levels[row], SIZE, seed, row) for row in rows.tolist()])

    return reference.Split(levels, np.arange(count) // 20, read, f"phantoms {seed} {count}")


@pytest.fixture(scope="module")
def reference_set(tmp_path_factory: pytest.TempPathFactory) -> reference.ReferenceSet:
    """Phantoms, with a predictor trained for seconds."""
    cache = reference.FeatureCache(tmp_path_factory.mktemp("cache"))
    network = features.Features("pooled", "1", SIZE, Pooled())
    found = reference.analyze_reference(PUBLISHED, split(TRAIN, 0), split(HELD_OUT, 1), network, Processes(), cache, kind="cnn", steps=300)
    assert found is not None
    return found


def rows_of(reference_set: reference.ReferenceSet, follows_labels: bool) -> dict[str, dict]:
    plan = samples.make_plan(reference_set, PUBLISHED, Processes(), count=160, sweeps=SWEEPS, seed=0)
    network = features.Features("pooled", "1", SIZE, Pooled())
    generated = samples.make(Renderer(follows_labels), 8, plan, network, Processes(), batch=16)
    assert generated is not None
    rows = [scores_module.real_data_row(reference_set, 160, measure.measure)]
    rows += scores_module.generator_rows(reference_set, plan, generated, "model", 160, measure.measure)
    return {row.numbers["kind"]: json.loads(json.dumps(row.numbers, allow_nan=False)) for row in rows}


def shuffled_error(levels: int) -> float:
    """Standard error of one attribute's Spearman with shuffled labels: 1 / sqrt(n - 1) for n tiles, relative to its maximum."""
    return 1 / math.sqrt(SWEEPS * levels - 1) / control.spearman_ceiling(levels)


def floor_error() -> float:
    """Standard error of the mean over attributes; those with equally many levels have one permutation, so their errors add up."""
    counts = [len(attribute.assessable) for attribute in PUBLISHED.attributes]
    of_counts = [counts.count(levels) * shuffled_error(levels) for levels in set(counts)]
    return math.hypot(*of_counts) / len(counts)


def test_generator_that_follows_its_labels_scores_like_real_data(reference_set: reference.ReferenceSet) -> None:
    rows = rows_of(reference_set, follows_labels=True)
    ceiling, model, floor = (rows[kind] for kind in ("ceiling", "generator", "floor"))
    assert reference_set.assessed_columns == [0, 1, 2, 3, 4]
    assert model["obeys"] > 0.93 and abs(model["obeys"] - ceiling["obeys"]) < 0.06
    assert abs(floor["obeys"]) < 3 * floor_error()
    for attribute in PUBLISHED.attributes:
        name = attribute.name
        assert model["control"][name]["spearman"][0] > 0.8 and model["measured"][name] > 0.6, name
        assert abs(floor["control"][name]["spearman"][0]) < 3 * shuffled_error(len(attribute.assessable)), name
        assert model["monotone"][name] > 0.85, name
        assert model["paths"][name]["order"] > 0.86, name  # levels in between are rounded: of two levels sqrt(3/4) at most
        low, high = model["control"][name]["accuracy"][1:]
        assert low <= model["control"][name]["accuracy"][0] <= high
    leak = np.array(model["leak"]["matrix"])
    assert np.diag(leak).min() > 0.6 and model["leak"]["mean"] < 0.15
    assert model["quality"]["kid"][1] < 0.02 and model["quality"]["fid"][0] < 4 * ceiling["quality"]["fid"][0] + 0.1
    assert 0.7 < model["memory"]["ratio"] < 1.3 and model["memory"]["nearer"] < 0.1
    crowding = [rows[kind]["level_kid"]["cell_crowding"]["4"][0] for kind in ("generator", "floor")]
    assert crowding[0] < crowding[1]


@pytest.mark.slow
def test_pixel_change_is_from_the_lowest_to_the_highest_level(reference_set: reference.ReferenceSet) -> None:
    model = rows_of(reference_set, follows_labels=True)["generator"]
    plan = samples.make_plan(reference_set, PUBLISHED, Processes(), count=160, sweeps=SWEEPS, seed=0)
    rows_APSK = plan.path_rows().reshape(5, SWEEPS, samples.POINTS, 6)
    apart = np.abs(np.diff(reference_set.thumbs[: scores_module.PAIRS + 1].astype(float), axis=0)).mean()
    latents_SL = latents.latents_for(0, range(SWEEPS), 8)
    for a, name in enumerate(PUBLISHED.names):
        low, high = (
            generate.generate(Renderer(True), latents_SL, torch.from_numpy(rows_APSK[a, :, end, :-1])).astype(float) for end in (0, -1)
        )
        assert model["paths"][name]["changed"] == pytest.approx(np.abs(high - low).mean() / apart), name
    (table,) = report_module.sweep_levels([model])
    for attribute, *cells in table.rows:
        path = model["paths"][attribute]
        assert [cell.text for cell in cells] == [
            f"{value:.2f}" for value in (model["monotone"][attribute], path["order"], path["length"], path["largest"], path["changed"])
        ]
    assert [heading.split()[0] for heading in table.header] == ["attribute", "steps", "order", "path", "longest", "pixel"]


def test_generator_that_ignores_its_labels_scores_like_shuffled_labels(reference_set: reference.ReferenceSet) -> None:
    model = rows_of(reference_set, follows_labels=False)["generator"]
    assert abs(model["obeys"]) < 0.15
    assert max(np.array(model["leak"]["matrix"]).ravel()) == 0  # and a small leak says nothing
    assert all(value == 0.5 for value in model["monotone"].values())
    assert all(path["order"] == 0 and path["changed"] == 0 for path in model["paths"].values())
    assert report_module._leak(model).small == "control score too low"
    assert model["quality"]["precision"][0] > 0.6  # the tiles are as real as the others


def test_levels_with_few_tiles_are_not_assessed_and_enter_no_score(reference_set: reference.ReferenceSet) -> None:
    """One attribute with a rare level, one with a single level, one with random labels."""
    rng = np.random.default_rng(0)
    schema = AttributeSchema(
        (Attribute("many", ("unclear", "a", "b", "c"), 0), Attribute("one", ("a", "b")), Attribute("noise", ("a", "b")))
    )
    train, held_out = np.ones((200, 3), int), np.ones((100, 3), int)
    for levels in (train, held_out):
        levels[:, 0] = rng.integers(0, 3, len(levels))
        levels[:3, 0] = 3
        levels[:, 2] = rng.integers(0, 2, len(levels))
    said = np.stack([held_out[:, 0] + 0.1 * rng.standard_normal(100), np.ones(100), rng.random(100)], axis=1)
    held_out_predictions = reference.HeldOutPredictions(held_out, said, np.arange(100) // 10, crossed=False)
    found = [reference._assess(schema, a, train[:, a], held_out_predictions) for a in range(3)]
    (many, scores), (one, none), (noise, _) = found
    assert many.is_assessed and many.levels == (1, 2) and scores["accuracy"].value > 0.95
    assert not one.is_assessed and not none and "level 0: 0/0" in one.reason
    assert not noise.is_assessed and "can't order real tiles of unseen slides" in noise.reason


def test_intervals_are_over_slides() -> None:
    """Ten slides on which the predictor has the same error on all tiles: a wide interval, which would be narrow over tiles."""
    levels = np.random.default_rng(0).integers(1, 5, (400, 1))
    slides = np.arange(400) // 40
    said = levels + 1.5 * np.random.default_rng(1).standard_normal(10)[slides][:, None]
    schema = AttributeSchema((PUBLISHED.attributes[0],))
    wide, narrow = (
        reference._assess(schema, 0, levels[:, 0], reference.HeldOutPredictions(levels, said, group, False))[1]["mae"]
        for group in (slides, slides // 5)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_small_sets_are_cross_validated_by_slide(tmp_path: Path) -> None:
    """Training tiles are cross-validated; a predictor trained on their slide would score better."""
    network = features.Features("pooled", "1", SIZE, Pooled())
    found = reference.analyze_reference(
        PUBLISHED, split(100, 0), split(40, 1), network, Processes(), reference.FeatureCache(tmp_path), kind="features"
    )
    assert (
        found
        and found.held_out_predictions.crossed
        and found.held_out_predictions.predicted_NA.shape == (140, 5)
        and len(np.unique(found.held_out_predictions.group_N)) == 7
    )
    train = found.train
    seen = found.attribute_predictor.predict(train.thumbs(), found.train_ND)
    apart = [predictor.mean_spearman(PUBLISHED, train.levels_NA, said) for said in (seen, found.held_out_predictions.predicted_NA[40:])]
    assert apart[0] > apart[1] + 0.1
    note = scores_module.data_notes(found)
    assert note["exam"] == {"tiles": 140, "groups": 7, "crossed": True}


def test_features_and_predictors_are_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, network = reference.FeatureCache(tmp_path / "cache"), features.Features("pooled", "1", SIZE, Pooled())
    first = reference.analyze_reference(PUBLISHED, split(60, 0), split(40, 1), network, Processes(), cache, kind="features")
    monkeypatch.setattr(predictor, "fit_head", None)  # would fail
    uses = []
    counting = features.Features("pooled", "1", SIZE, lambda images: uses.append(len(images)) or Pooled()(images))
    again = reference.analyze_reference(PUBLISHED, split(60, 0), split(40, 1), counting, Processes(), cache, kind="features")
    assert first and again and not uses
    np.testing.assert_array_equal(first.held_out_predictions.predicted_NA, again.held_out_predictions.predicted_NA)
    monkeypatch.undo()
    other = reference.analyze_reference(PUBLISHED, split(61, 0), split(40, 1), counting, Processes(), cache, kind="features")
    assert other and sum(uses) == 61


@pytest.mark.slow
def test_auto_selects_the_predictor_with_the_better_held_out_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour features predict polarity poorly; with enough tiles a CNN is trained too, and the selection is saved."""
    monkeypatch.setattr(reference, "CNN_TILES", 200)
    network = features.Features("pooled", "1", SIZE, Pooled())
    for count, kinds in ((240, {"features", "cnn"}), (100, set())):
        found = reference.analyze_reference(
            PUBLISHED, split(count, 0), split(40, 1), network, Processes(), reference.FeatureCache(tmp_path), steps=60
        )
        assert found and set(found.note.get("choice", {})) == kinds
        if kinds:
            assert found.note["kind"] == max(kinds, key=found.note["choice"].__getitem__)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "<shards>"  # a name to escape
    assert shard_main(["phantom", "--count", "240", "--size", "32", "--val-fraction", "0.3", "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained generator."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    untrained_run(folder, 1234)
    lines = [{"images": images, "real_score": images / 10, "skipped": None} for images in (100, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 30')
    return folder


def arguments(run: Path, shards: Path, out: Path) -> list[str]:
    return [
        str(run),
        "--shards",
        str(shards),
        "--out",
        str(out),
        "--count",
        "70",
        "--sweeps",
        "5",
        "--cache",
        str(out / "cache"),
        "--features",
        "tests.helpers.fake_features:pooled",
        "--feature-size",
        "32",
        "--predictor",
        "features",
        "--precision",
        "fp32",
    ]


@pytest.fixture(scope="module")
def report(run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "one"
    assert evaluate.main(arguments(run, shards, out)) == 0
    return out


def test_command_writes_a_self_contained_page(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert "<script" not in text and 'src="http' not in text and "default-src 'none'" in text
    assert "<shards>" not in text and "&lt;shards&gt;" in text
    for part in (
        "KID x 1000",
        "real held-out tiles",
        "untrained, shuffled labels",
        "Predictor",
        "Over training",
        "Image measurements",
    ):
        assert part in text, part
    assert text.count("data:image/png;base64,") >= 4 and "data:image/svg+xml" in text
    found = json.loads((report / "result.json").read_text())
    assert found["features"]["name"] == "tests.helpers.fake_features:pooled" and found["features"]["size"] == 32
    assert found["models"]["untrained"]["images"] == 1234 and found["data"]["groups_apart"] is True
    assert [row["kind"] for row in found["rows"]] == ["ceiling", "generator", "floor"]
    assert any((report / "tensorboard").iterdir())


def test_control_by_image_measurements(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With measurements for real tissue at full size; an untrained generator follows no level."""
    pytest.importorskip("skimage", reason="needs attributegan[measure]")
    out = tmp_path / "out"
    assert evaluate.main([*arguments(run, shards, out), "--measure", "cell_crowding=hematoxylin_density"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["measured_by"] == {"cell_crowding": "hematoxylin_density"}
    of = {row["kind"]: row["measured"] for row in result["rows"]}
    assert all(set(measured) <= {"cell_crowding"} for measured in of.values())
    assert of["ceiling"]["cell_crowding"] > 0.6 and abs(of["generator"].get("cell_crowding", 0)) < 0.5
    assert "cell_crowding by hematoxylin_density" in (out / "report.html").read_text()
    assert evaluate.main([*arguments(run, shards, tmp_path / "no"), "--measure", "crowding=area_fraction"]) == 2
    assert "crowding is not an attribute of the tiles" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(run: Path, shards: Path, report: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "configs/accelerate/cpu.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "tools/evaluate.py",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments(run, shards, tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds(200)
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (report, tmp_path))
    pairs = list(zip(numbers(one["rows"]), numbers(two["rows"]), strict=True))
    assert len(pairs) > 200 and len({value for value, _ in pairs}) > 100
    assert max(abs(a - b) for a, b in pairs) < 1e-4


def numbers(tree: object) -> list[float]:
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_compare_writes_reports_to_one_page(report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison.html"
    assert evaluate.main(["compare", str(report), str(report / "result.json"), "--out", str(out)]) == 0
    assert "Not comparable" not in out.read_text() and out.read_text().count("untrained") >= 2
    other = json.loads((report / "result.json").read_text())
    other["features"]["size"] = 64
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text(json.dumps(other))
    assert evaluate.main(["compare", str(report), str(tmp_path / "other"), "--out", str(out)]) == 0
    assert "Not comparable" in out.read_text() and "different features" in capsys.readouterr().err
    assert evaluate.main(["compare", str(report), str(tmp_path), "--out", str(out)]) == 2
    assert f"{tmp_path / 'result.json'}: can't be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "other" / "result.json").write_text("{}")
    assert evaluate.main(["compare", str(report), str(tmp_path / "other"), "--out", str(out)]) == 2
    assert "not a result of attributegan-evaluate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--count", "3"], "--count: 3 must be at least 16"),
        (["--held-out", "train"], "--held-out: train is also the training split"),
        (["--held-out", "test"], "has no split 'test'; found train, val"),
        (["--train", "test"], "--train: "),
        (["--features", "nothing-here"], "--features 'nothing-here': no such file"),
        (["--baseline", "RUN"], "--baseline: the same model is given twice"),
        (["--shards", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused(
    changed: list[str], message: str, run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run) if word == "RUN" else word for word in changed]
    assert evaluate.main([*arguments(run, shards, tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "result.json").exists()


def test_tiles_that_are_not_assessable_can_be_skipped(tmp_path: Path) -> None:
    """Pixels and groups stay with the levels of their tiles, and the cache does not mix selections."""
    from tools.evaluation import data as data_module

    place = make_set(tmp_path, 70, val_fraction=0.3)
    identities = set()
    for words in ([], ["--assessable-only"]):
        options = evaluate._parser().parse_args(["report", "run", "--shards", str(place), "--out", "o", *words])
        data = data_module.open_data(settings_of(EvaluationSettings, options), 16)
        for name, part in (("train", data.train), ("val", data.held_out)):
            expected = [number_of(row["key"]) for row in rows_of_set(place) if row["split"] == name and (row["grade"] or not words)]
            pixels_NHWC = part.read(np.arange(len(part))).astype(int)
            numbers_N = pixels_NHWC[:, 0, 0, 0] + 256 * pixels_NHWC[:, 0, 0, 1]
            assert sorted(numbers_N.tolist()) == sorted(expected)
            assert [tuple(levels_A) for levels_A in part.levels_NA.tolist()] == [levels_of(number) for number in numbers_N.tolist()]
            assert np.array_equal(part.group_N[:, None] == part.group_N, numbers_N[:, None] // 5 == numbers_N // 5)
            identities.add(part.identity)
    assert len(identities) == 4


def test_models_of_other_attributes_are_refused(run: Path, tmp_path: Path) -> None:
    from tools.evaluation import data as data_module

    loaded = loading.load_for_sampling(run)
    schema = AttributeSchema((Attribute("grade", ("low", "high")),))
    data = data_module.Data("shards", schema, split(4, 0), split(4, 1), None, None)
    with pytest.raises(ValueError, match="does not fit the shards: the model has the attributes cell_crowding"):
        data_module.check_model("untrained", loaded, data)
    with pytest.raises(ValueError, match="b: has tiles of 64 pixels, the first of 32; evaluate them separately"):
        data_module.common_size({"a": 32, "b": 64})


@pytest.mark.slow
def test_help_imports_neither_torch_nor_numpy() -> None:
    code = "import sys; from tools.evaluate import _parser; _parser(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=seconds(60)).returncode == 0


def test_settings_come_from_the_parser() -> None:
    options = evaluate._parser().parse_args(["report", "compare", "--shards", "s", "--out", "o"])  # a folder may be called as a command
    assert settings_of(EvaluationSettings, options) == EvaluationSettings(model="compare", out=Path("o"), shards="s")
    assert EvaluationSettings.features == feature_networks.AUTO


def test_models_are_named_after_their_run(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b", tmp_path / "b" / "checkpoints" / "images-000000012000"]
    assert run_module.names_of(paths) == ["run", "b", "b at 12,000"]
    study = tmp_path / "paper" / "seed-1" / "run"  # as attributegan-study names its runs
    assert run_module.names_of([study, study / "checkpoints" / "images-000000000800"]) == ["paper, seed 1", "paper, seed 1 at 800"]
    assert run_module.names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == [
        str(tmp_path / "a" / "run"),
        str(tmp_path / "b" / "run"),
    ]


def test_real_tiles_at_a_url(run: Path, shards: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as from the folder; the URL is reported without its secret."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with web(shards) as site:
        assert evaluate.main([*arguments(run, shards, tmp_path / "out"), "--shards", f"{site.url}?signature=hush"]) == 0
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (report, tmp_path / "out"))
    assert numbers(one["rows"]) == pytest.approx(numbers(other["rows"]), abs=1e-6)
    assert one["data"]["identity"] == other["data"]["identity"]
    for name in ("result.json", "report.html"):
        assert "hush" not in (tmp_path / "out" / name).read_text()


def test_features_that_trained_the_model_do_not_score_it(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default another network is used; the same one is refused, and marks the report if it is allowed."""
    words, name = arguments(run, shards, tmp_path / "out"), "tests.helpers.fake_features:pooled"
    monkeypatch.setattr(feature_networks, "trained_on", lambda config: name)
    assert evaluate.main(words) == 2
    assert f"--features {name}: untrained was trained on these features" in capsys.readouterr().err
    assert not (tmp_path / "out" / "result.json").exists()
    assert evaluate.main([*words, "--allow-trained-features"]) == 0
    marked = "Trained on these features: untrained; "
    assert marked in capsys.readouterr().out and marked in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trained_on_features"] == ["untrained"]
    assert evaluate.main(["compare", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    assert marked in (tmp_path / "page.html").read_text()


def test_standardised_features_have_their_real_tiles_in_their_identity(run: Path, shards: Path, tmp_path: Path) -> None:
    """The spread of the training tiles is 1, whatever the network's scale, and results of other real tiles don't compare."""
    cache = reference.FeatureCache.at(tmp_path / "cache")
    train, other = split(40, 0), split(40, 1)
    network = features.load("random", size=32)
    found = reference.standardised(network, train, Processes(), cache)
    train_ND = reference.features_of(train, "training tiles", found, Processes(), cache, lambda *progress: None)
    assert train_ND is not None
    spread_D = train_ND.std(axis=0)
    assert np.isclose(spread_D, 1, atol=0.01).mean() > 0.7 and spread_D.max() < 1.01  # less where outliers are clipped
    assert np.array_equal(train_ND, reference.features_of(train, "again", found, Processes(), cache, lambda *progress: None))
    assert found.identity != reference.standardised(network, other, Processes(), cache).identity
    assert reference.standardised(found, other, Processes(), cache) is found
    plain = features.load("tests.helpers.fake_features:pooled")
    assert reference.standardised(plain, train, Processes(), cache) is plain
