"""The explorer without a browser: states and links, errors, access control, the command line."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import numpy as np
import pytest
import torch
from browser import Served, served
from PIL import Image
from shards import make_set
from time_limits import seconds
from untrained_run import SMALLEST, untrained_run

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference
from attributegan.export import AttributeGenerator, export_generator
from attributegan.metrics import features, predictor
from attributegan.sampling import generate, latents
from data_shards.storage.cache import Cache as ShardCache
from tools import explore
from tools.evaluation.data import open_split
from tools.explorer import auth, model, page, predictions, server
from tools.explorer.drawing import Painter
from tools.explorer.state import State, query_of, read, sizes

TOKEN = "a-token-of-a-test"
NO_ANALYZER = predictions.TileAnalyzer(None, predictions.NO_PREDICTOR, None, None)


@pytest.fixture(scope="module")
def explorer(run: Path) -> Iterator[Served]:
    with served(run) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    with served(run, "--token-file", str(file)) as found:
        yield found


def asked(at: Served, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(at.address).netloc, timeout=seconds(60))
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_states_and_links_convert_both_ways() -> None:
    state = State((0, 2.5, 3, 1, 4), seed=7, mix_seed=9, mix=0.25, truncation=1.3, size=256)
    query = query_of(PUBLISHED, state, "abc")
    assert read(PUBLISHED, 64, dict(parse_qsl(query))) == (state, [])
    assert "na.cell_crowding=1" in query and "a.cell_polarity=2.5" in query and "model=abc" in query
    usual, problems = read(PUBLISHED, 64, {})
    assert usual == State((2, 2, 2, 1, 2), size=64) and not problems
    assert read(PUBLISHED, 64, {"a.mitosis": "frequent", "a.pleomorphism": "2.96"})[0].levels == (2, 2, 3, 1, 3)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("a.mitosis", "4", "mitosis has the levels 0 (insufficient information), 1 (rare)"),
        ("a.mitosis", "0.5", "mitosis has the levels"),
        ("a.mitosis", "nan", "mitosis has the levels"),
        ("a.mitosis", "9" * 5000, "mitosis has the levels"),
        ("na.mitosis", "0", "“0” is invalid; the only value is 1"),
        ("seed", "-1", "is not a valid seed"),
        ("seed", "9" * 5000, "“99999999999999999999…” is not a valid seed"),
        ("mix", "nan", "is not a number from 0 to 1"),
        ("truncation", "0", "is not a number from 0.5 to 3"),
        ("size", "100000", "px is not available; choose one of 64, 128, 256, 512"),
    ],
)
def test_invalid_values_in_a_link_are_reported(key: str, value: str, what: str) -> None:
    state, problems = read(PUBLISHED, 64, {key: value})
    assert state == read(PUBLISHED, 64, {})[0]
    assert len(problems) == 1 and problems[0].startswith(f"{key}: ") and what in problems[0]


@pytest.mark.parametrize("key", ["a.mitoses", "na.mitoses", "a."])
def test_unknown_attributes_in_a_link_are_reported(key: str) -> None:
    state, problems = read(PUBLISHED, 64, {key: "1", "seed": "4", "size": "64"})
    assert state == read(PUBLISHED, 64, {"seed": "4"})[0]
    assert problems == [f"“{key.partition('.')[2]}” is not an attribute of this model; it has {', '.join(PUBLISHED.names)}"]


def test_not_assessable_needs_such_a_level() -> None:
    schema = AttributeSchema((Attribute("size", ("small", "large")),))
    assert "has no level “not assessable”" in read(schema, 64, {"na.size": "1"})[1][0]
    assert sizes(64) == [64, 128, 256, 512] and sizes(512) == [512, 1024] and sizes(2048) == [2048]


@pytest.mark.parametrize(
    ("levels", "wrong"),
    [
        ([[5, 1, 1, 1, 1]], r"row 0: cell_crowding is 5; use a level from 1 to 4, or exactly 0 \(insufficient information\)"),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, -2]], "row 1: pleomorphism is -2"),
        ([[1, 1, 0.5, 1, 1]], "row 0: mitosis is 0.5; use a level from 1 to 3, or exactly 0"),
        ([[1, 1, 1, -0.5, 1]], "nucleoli is -0.5"),
        ([[1, float("nan"), 1, 1, 1]], "cell_polarity is nan"),
        ([[1, 1, 1, 1]], r"got shape \(1, 4\), expected \(batch, 5\), for cell_crowding"),
    ],
)
def test_generator_rejects_invalid_levels(run: Path, levels: list[list[float]], wrong: str) -> None:
    generator = model.load(run).generator
    with pytest.raises(ValueError, match=wrong):
        generator(torch.zeros(len(levels), 16), torch.tensor(levels))
    good = torch.tensor([[0, 1, 3, 2, -1], [2.5, 1, 3, 0, -1]])
    assert generator(torch.zeros(2, 16), good).shape == (2, 3, 32, 32)


def test_models_with_auxiliary_heads_are_loaded(tmp_path: Path) -> None:
    """These networks require a loss in training, but not here."""
    options = {
        **{name: getattr(SMALLEST, name) for name in ("image_size", "latent_dim", "fmap_max", "fmap_inverse_coef")},
        "generator_attention": [],
        "auxiliary_heads": True,
    }
    attributes = [{"name": name, **entry} for name, entry in PUBLISHED.to_dict().items()]
    assert AttributeGenerator(options, attributes).image_size == 32
    with pytest.raises(ValueError, match=r"config\.json: model\.image_size"):
        AttributeGenerator(options | {"image_size": 33}, attributes)


def test_mixed_latents_keep_their_length() -> None:
    start, end = latents.latents_for(0, range(4), 96), latents.latents_for(1, range(4), 96)
    assert torch.allclose(latents.slerp(start, end, 0), start) and torch.allclose(latents.slerp(start, end, 1), end, atol=1e-6)
    half = latents.slerp(start, end, 0.5)
    assert (half.norm(dim=1) > 0.9 * torch.minimum(start.norm(dim=1), end.norm(dim=1))).all()
    assert torch.allclose(latents.slerp(start, start, 0.3), start) and torch.equal(latents.slerp(start, -start, 0.5), torch.zeros(4, 96))


def test_tile_equals_that_of_sampling(run: Path) -> None:
    shown = model.load(run)
    painter, state = Painter(shown), read(PUBLISHED, 32, {"seed": "3"})[0]
    latent, levels = latents.latents_for(3, [0], 16), torch.tensor([[2, 2, 2, 1, 2]])
    assert np.array_equal(painter.tile(state), generate.generate(shown.generator, latent, levels)[0])
    moved = painter.tile(replace(state, truncation=0.5))
    assert np.array_equal(moved, generate.generate(shown.generator, latents.truncate_latents(latent, 0.5), levels)[0])
    assert np.array_equal(painter.tile(replace(state, mix=1.0, mix_seed=4)), painter.tile(replace(state, seed=4)))
    assert painter.tile(replace(state, size=128)) is painter.tile(state)  # drawn once


def test_runs_checkpoints_and_exports_are_shown(run: Path, tmp_path: Path) -> None:
    export_generator(run, tmp_path / "exported")
    shown, exported = model.load(run), model.load(tmp_path / "exported")
    assert shown.images == 1234 and exported.images is None and exported.name == "exported"
    assert "not for diagnosis" in shown.card and "not for diagnosis" in exported.card and "library_name" not in exported.card
    state = State((1, 1, 1, 1, 1), size=32)
    assert np.array_equal(Painter(shown).tile(state), Painter(exported).tile(state))
    checkpoint = next((run / "checkpoints").iterdir())
    assert model.load(checkpoint).identity == shown.identity != model.load(run, raw=True).identity
    assert model.load(checkpoint).name == run.name
    with pytest.raises(ValueError, match="--no-ema"):
        model.load(tmp_path / "exported", raw=True)


def test_errors_have_a_message(explorer: Served) -> None:
    for path, status, word in (
        ("/tile.png?size=4096", 400, "px is not available"),
        ("/tile.png?a.mitosis=x", 400, "mitosis has the levels"),
        ("/levels?seed=x", 400, "is not a valid seed"),
        ("/tile.png?model=123456789abc", 400, "The server now shows another model"),
        ("/quiz/question?round=1&attribute=age", 400, "attribute: the model has cell_crowding"),
        ("/quiz/answer?round=1&attribute=mitosis&level=0", 400, "level: choose one of rare, infrequent, frequent"),
        ("/quiz/tile.png?round=1e9", 400, "round: give an integer"),
        ("/real/0.png", 400, "real tile 0 does not exist"),
        ("/static/../explore.py", 404, "Page not found"),
        ("/static/%2e%2e/%2e%2e/setup.cfg", 404, "Page not found"),
        ("/etc/passwd", 404, "Page not found"),
    ):
        answer, body = asked(explorer, path)
        assert answer.status == status and word in json.loads(body)["error"], path
    assert asked(explorer, f"/tile.png?seed={'1' * 100_000}")[0].status == 400
    assert asked(explorer, "/", method="POST", body="x")[0].status == 405


def test_without_predictor_or_shards_the_page_says_so(explorer: Served) -> None:
    text = asked(explorer, "/")[1].decode()
    assert predictions.NO_PREDICTOR in text and "start attributegan-explore with --shards" in text
    assert json.loads(asked(explorer, "/levels")[1])["levels"] is None and json.loads(asked(explorer, "/nearest")[1]) == {"tiles": []}
    assert json.loads(asked(explorer, "/quiz/answer?round=1&attribute=mitosis&level=1")[1])["predicted"] is None


def test_a_quiz_tile_has_no_metadata_about_its_levels(explorer: Served) -> None:
    answer, body = asked(explorer, "/quiz/tile.png?round=11")
    image = Image.open(io.BytesIO(body))
    assert answer.status == 200 and image.size == (256, 256) and set(image.text) == {"Software", "Disclaimer"}  # type: ignore[attr-defined]


def test_other_host_names_are_rejected(explorer: Served) -> None:
    assert asked(explorer, "/", Host="evil.example")[0].status == 400
    port = urlsplit(explorer.address).port
    assert all(asked(explorer, "/", Host=f"{name}:{port}")[0].status == 200 for name in ("localhost", "127.0.0.1", "[::1]"))


@pytest.mark.slow
def test_every_loopback_address_accepts_its_own_name(run: Path) -> None:
    with served(run, "--host", "127.0.0.2") as found:
        assert found.address.startswith("http://127.0.0.2:") and asked(found, "/")[0].status == 200
        assert asked(found, "/", Host="evil.example")[0].status == 400


def test_browsers_run_no_other_scripts(explorer: Served) -> None:
    answer, body = asked(explorer, f"/?seed={quote('<script>alert(1)</script>')}")
    assert b"<script>alert" not in body and b"&lt;script&gt;alert(1)" in body
    assert "default-src 'self'" in (answer.getheader("Content-Security-Policy") or "") and "unsafe" not in str(answer.headers)
    assert answer.getheader("X-Content-Type-Options") == "nosniff" and answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"


def test_texts_of_files_are_escaped(tmp_path: Path) -> None:
    schema = AttributeSchema((Attribute("size", ("<i>small", "la'rge\"><b>"), 0), Attribute("kind", ("<u>", "'"))))
    generator = AttributeGenerator(
        {"image_size": 32, "latent_dim": 16, "fmap_max": 16, "generator_attention": []},
        [{"name": name, **entry} for name, entry in schema.to_dict().items()],
    )
    shown = model.Model(generator, "<script>name", "id", None, "# Card\n<script>card</script> [x](javascript:alert(1))")
    pages = page.Pages(shown, NO_ANALYZER)
    text = pages.explore(read(schema, 32, {})[0], ["<script>problem"]) + pages.quiz()
    assert not any(bad in text for bad in ("<script>n", "<script>c", "<script>p", "<i>", "<b>", "<u>", 'href="javascript'))


def test_a_token_is_required(guarded: Served) -> None:
    for path in ("/", "/quiz", "/tile.png", "/static/explore.js", "/?token=wrong", "/nothing"):
        answer, body = asked(guarded, path)
        assert answer.status == 401 and b"1,234 images" not in body and answer.getheader("Set-Cookie") is None
    assert asked(guarded, "/", Cookie=f"explorer-{urlsplit(guarded.address).port}=wrong")[0].status == 401
    assert asked(guarded, "/", method="POST", body=f"token={TOKEN}{'x' * 5000}")[0].status == 401
    wrong = asked(guarded, "/", method="POST", body="token=wrong")
    assert wrong[0].status == 401 and b"Wrong token" in wrong[1]


def test_form_size_is_limited(guarded: Served) -> None:
    """A request with a small Content-Length and a large chunked body; the server responds before its end."""
    with socket.create_connection(("127.0.0.1", urlsplit(guarded.address).port or 0), timeout=seconds(60)) as visitor:
        visitor.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n")
        visitor.sendall(b"%x\r\n%b\r\n" % (auth.LARGEST_FORM + 1, b"a" * (auth.LARGEST_FORM + 1)))
        assert visitor.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(("path", "body"), [(f"/quiz?token={TOKEN}&seed=4", None), ("/quiz?seed=4", f"token={TOKEN}")])
def test_a_token_redirects_to_the_requested_page(guarded: Served, path: str, body: str | None) -> None:
    answer, _ = asked(guarded, path, method="POST" if body else "GET", body=body)
    assert answer.status == 303 and answer.getheader("Location") == "/quiz?seed=4"
    cookie = answer.getheader("Set-Cookie") or ""
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
    assert asked(guarded, "/quiz", Cookie=cookie.partition(";")[0])[0].status == 200


def test_a_token_does_not_redirect_to_other_sites(guarded: Served) -> None:
    answer, _ = asked(guarded, f"//evil.example/?token={TOKEN}")
    assert answer.status == 303 and answer.getheader("Location") == "/"


@pytest.mark.slow
def test_other_addresses_than_loopback_require_a_token(run: Path) -> None:
    with served(run, "--host", "0.0.0.0") as found:
        assert len(found.token) >= 32 and asked(found, "/")[0].status == 401
        assert asked(found, f"/?token={found.token}", Host="host.example")[0].status == 303
    assert [auth.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "host.example")] == [True] * 3 + [
        False
    ] * 3


def test_the_address_to_open_names_this_machine() -> None:
    here = socket.gethostname()
    hosts = {"0.0.0.0": here, "::": here, "::1": "[::1]", "127.0.0.1": "127.0.0.1", "10.0.0.1": "10.0.0.1", "host.example": "host.example"}
    assert {host: auth.host_to_open(host) for host in hosts} == hosts


def test_too_many_requests_get_status_503(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded while the drawing thread is blocked."""
    import uvicorn

    monkeypatch.setattr(server, "MAX_WAITING", 2)
    shown = server.Explorer(model.load(run), NO_ANALYZER)
    held = threading.Event()
    shown.thread.submit(held.wait)
    listening = server.listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(server.application(shown, "127.0.0.1", "", 0), log_level="warning"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    at = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", "", None)  # type: ignore[arg-type]
    statuses: list[int] = []
    visitors = [
        threading.Thread(target=lambda seed=seed: statuses.append(asked(at, f"/tile.png?seed={seed}")[0].status))  # type: ignore[misc]
        for seed in range(6)
    ]
    for visitor in visitors:
        visitor.start()
    deadline = time.monotonic() + seconds(60)
    while len(statuses) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert statuses == [503] * 4
    held.set()
    for visitor in visitors:
        visitor.join(seconds(60))
    assert sorted(statuses) == [200] * 2 + [503] * 4
    running.should_exit = True
    thread.join(seconds(60))
    listening.close()


@pytest.fixture
def real(shards: Path) -> reference.Split:
    return open_split(str(shards), "train", 32, 5000, False, ShardCache.of(""), "--train")[2]


def shown_model(trained_on: str = "", schema: AttributeSchema = PUBLISHED) -> model.Model:
    attributes = [{"name": name, **entry} for name, entry in schema.to_dict().items()]
    options = {"image_size": 32, "latent_dim": 16, "fmap_max": 16, "generator_attention": []}
    return model.Model(AttributeGenerator(options, attributes), "run", "id", None, "", trained_on)


def fitted(split: reference.Split, network: features.Features, cache: reference.FeatureCache) -> tuple[predictor.Head, np.ndarray]:
    """Returns a head on the features of a network, and these features."""
    features_ND = reference.features_of(split, "", network, Processes(), cache, lambda *progress: None)
    assert features_ND is not None
    return predictor.fit_head(split.thumbs(), features_ND, split.levels_NA, split.group_N, PUBLISHED, decay=0.1), features_ND


def test_the_predictor_of_an_evaluation_is_found(real: reference.Split, tmp_path: Path) -> None:
    network, cache = features.load(), reference.FeatureCache.at(tmp_path / "cache")

    def opened(predictor_folder: Path | None = None) -> predictions.TileAnalyzer:
        return predictions.open_analyzer(shown_model(), real, predictor_folder, tmp_path / "cache", lambda *progress: None)

    without = opened()
    assert without.attribute_predictor is None and without.predictor_note == predictions.NO_PREDICTOR and without.tiles is not None
    tile = real.read(np.array([5]))[0]
    assert without.nearest(tile)[0] == 5 and len(without.nearest(tile)) == 4
    head, features_ND = fitted(real, network, cache)
    note = {"training_tiles": 96, "choice": {"features": 0.625}, "features": network.identity}
    reference.predictor_cache(PUBLISHED, real, network, cache).save(head, note)
    found = opened()
    assert "trained on 96 real tiles" in found.predictor_note and "0.62" in found.predictor_note
    assert found.levels(tile) == pytest.approx(head.predict(real.thumbs()[5:6], features_ND[5:6])[0], abs=1e-3)
    given = tmp_path / "given"
    predictor.PredictorCache(given).save(head, note)
    assert opened(given).levels(tile) == found.levels(tile)
    other = AttributeSchema((*PUBLISHED.attributes[1:], PUBLISHED.attributes[0]))
    with pytest.raises(ValueError, match="no predictor for the model's attributes"):
        predictions.open_analyzer(shown_model(schema=other), None, given, None, lambda *progress: None)


def test_a_predictor_gets_the_features_that_it_was_trained_on(real: reference.Split, tmp_path: Path) -> None:
    """The networks have equally many features, so a wrong one would go unnoticed."""
    first, second = features.load("efficientnet-lite0"), features.load("efficientnet-lite1")
    cache = reference.FeatureCache.at(tmp_path / "cache")

    def opened(trained_on: str, folder: Path | None = None) -> predictions.TileAnalyzer:
        return predictions.open_analyzer(shown_model(trained_on), real, folder, tmp_path / "cache", lambda *progress: None)

    head, features_ND = fitted(real, second, cache)
    stored = reference.predictor_cache(PUBLISHED, real, second, cache)
    stored.save(head, {"features": second.identity})
    expected = head.predict(real.thumbs()[5:6], features_ND[5:6])[0]
    tile = real.read(np.array([5]))[0]
    for found in (opened("efficientnet-lite0"), opened(""), opened("", stored.folder)):
        assert found.network is not None and found.network.name == second.name
        assert found.levels(tile) == pytest.approx(expected, abs=1e-3) and found.nearest(tile)[0] == 5
    reference.predictor_cache(PUBLISHED, real, first, cache).save(fitted(real, first, cache)[0], {"features": first.identity})
    for trained_on, name in (("", first.name), (first.name, second.name)):
        network = opened(trained_on).network
        assert network is not None and network.name == name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (None, "does not record the feature network"),
        ("efficientnet-lite0", "does not record the feature network"),
        ({"name": "os:system"}, "trained on features of os:system; only EfficientNets"),
        ({"version": "0"}, "another version of efficientnet-lite0 \\(0, installed is"),
    ],
)
def test_a_predictor_of_other_features_is_refused(change: dict[str, Any] | str | None, text: str, tmp_path: Path) -> None:
    recorded = features.load().identity | change if isinstance(change, dict) else change
    predictor.PredictorCache(tmp_path).save(predictor.Head(PUBLISHED, 12), {"features": recorded})
    with pytest.raises(ValueError, match=text):
        predictions.open_analyzer(shown_model(), None, tmp_path, None, lambda *progress: None)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--port", "65536"], "--port: 65536 is not from 0 to 65535"),
        (["--host", ""], "--host: is empty"),
        (["--max-real", "0"], "--max-real: 0 must be at least 1"),
        (["--token-file", "nowhere"], "--token-file nowhere: can't be read"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: can't listen"),
        (["--predictor", "nowhere", "--port", "0"], "--predictor nowhere: no predictor for the model's attributes"),
        (["--shards", "nowhere", "--port", "0"], "nowhere"),
    ],
)
def test_invalid_options_are_refused(run: Path, options: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main([str(run), *options]) == 2 and what in capsys.readouterr().err


def test_shards_of_other_attributes_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(make_set(tmp_path, 8))
    assert explore.main([str(run), "--port", "0", "--shards", other]) == 2
    assert "does not fit the model: the model has the attributes cell_crowding" in capsys.readouterr().err


def test_missing_model_and_port_in_use(tmp_path: Path, explorer: Served, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main([str(tmp_path), "--port", "0"]) == 2 and "neither a checkpoint nor a run folder" in capsys.readouterr().err
    port = str(urlsplit(explorer.address).port)
    assert explore.main([str(run), "--port", port]) == 2 and "can't listen" in capsys.readouterr().err
    (tmp_path / "token").write_text("short")
    assert explore.main([str(run), "--token-file", str(tmp_path / "token")]) == 2 and "at least 16" in capsys.readouterr().err


def test_a_newer_checkpoint_makes_other_links(run: Path, tmp_path: Path) -> None:
    untrained_run(tmp_path / "run", 5)
    assert model.load(tmp_path / "run").identity != model.load(run).identity
