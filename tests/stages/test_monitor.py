"""The monitor from its command's function: what arrives is counted once, kills lose nothing, alarms stay, figures leave."""

import json
import signal
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.checks.planted import images, stored, trained
from tests.children import COMMAND, Child, free_port
from tests.stages.monitoring import lines, look
from toolkit.bundle import Bundle, Store
from toolkit.checks import monitor_pass
from toolkit.checks.monitor import State, counted, load_state
from toolkit.checks.monitor_records import Answer
from toolkit.checks.monitor_reference import reference
from toolkit.checks.profile import make_profile
from toolkit.checks.sequential import log_e_shares
from toolkit.data.arrivals import Marks
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.release.prometheus_text import serve_metrics


@pytest.fixture
def bundle(store: Store) -> Bundle:
    found = stored(store, trained(num_epochs=8))
    make_profile(found, images(), store=store, max_samples=400)
    return found


def test_each_line_counts_once_and_a_quiet_service_stays_quiet(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(60, seed=0, right=1.0))
    assert look(bundle, store, source).verdict == "undecided"
    (source / "b.jsonl").write_bytes(lines(80, seed=1) + b'{"label": "hexagon"}\nno json\n')
    for _ in range(3):
        report = look(bundle, store, source)
    assert report.verdict == "pass"
    assert report.value("samples.seen") == 140
    assert report.value("samples.refused") == 2
    assert sum(report.details["counts"]["answers"]) == 140
    assert report.details["counts"]["errors"] == [0, 60]
    assert store.reports(bundle.digest)["monitor"].verdict == "pass"
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "No alarm" in page


def test_shifted_answers_and_rising_errors_alarm_and_the_alarm_stays(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(300, seed=0, shares=(0.8, 0.1, 0.1), right=0.5))
    report = look(bundle, store, source)
    assert report.verdict == "fail"
    assert (
        set(report.details["alarms"])
        == {"answers", "errors", "labels"} & set(report.details["alarms"])
        >= {"answers", "errors"}
    )
    (source / "b.jsonl").write_bytes(lines(3000, seed=1))
    assert look(bundle, store, source).verdict == "fail"
    assert "Alarm: the service has drifted" in (tmp_path / "out" / "monitor.html").read_text()


def test_a_change_that_comes_late_is_seen_and_none_is_seen_without_one(store: Store, bundle: Bundle) -> None:
    profile = make_profile(bundle, images(), store=store, max_samples=400)
    null = reference(profile, alpha=0.05)
    shares = np.array(null.shares["answers"]) / len(profile)

    def run(late: np.ndarray, seed: int, num_batches: int = 160) -> State:
        generator = np.random.default_rng(seed)
        state = State(bundle.digest, "", 0.05)
        for number in range(num_batches):
            now = shares if number < 120 else late
            batch = [Answer(int(k)) for k in generator.choice(3, size=25, p=now)]
            state = counted(state, batch, null, marks=Marks())
        return state

    late = run(np.array([0.7, 0.2, 0.1]), seed=0)
    assert 3000 < late.alarms["answers"]["num_samples"] <= 3500
    whole = log_e_shares(late.counts["answers"], null.regions["answers"])
    assert whole < null.alarm_at, "a single wager from the beginning would not have seen it"
    assert len(late.starts) <= 100
    quiet = [run(shares, seed=seed, num_batches=60) for seed in range(12)]
    assert sum(bool(state.alarms) for state in quiet) <= 1


def test_images_are_asked_and_their_distance_is_watched(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for sample in images().split("val").samples[:100]:
        Image.fromarray(sample.source).save(source / f"{sample.key.replace('/', '_')}.png")
    quiet = look(bundle, store, source)
    assert quiet.verdict == "pass"
    assert quiet.value("samples.seen") == 100
    generator = np.random.default_rng(0)
    for i in range(160):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(source / f"z{i}.png")
    (source / "broken.png").write_bytes(b"\x89PNG no more")
    noisy = look(bundle, store, source)
    assert "distance" in noisy.details["alarms"]
    assert noisy.value("samples.refused") == 1
    assert look(bundle, store, source).value("samples.refused") == 1, "looked at again only when its size changes"


def test_a_pass_that_dies_after_any_write_counts_everything_once(
    store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(6):
        (source / f"{i}.jsonl").write_bytes(lines(30, seed=i))
    real, fuse = State.save, iter(range(1000))

    def save(state: State, path: Path) -> None:
        number = next(fuse)
        if number % 3 == 1:
            raise KeyboardInterrupt  # dies before the write
        real(state, path)
        if number % 3 == 2:
            raise KeyboardInterrupt  # dies after it

    monkeypatch.setattr(monitor_pass.State, "save", save)
    for _ in range(30):
        try:
            report = look(bundle, store, source)
            break
        except KeyboardInterrupt:
            continue
    assert report.value("samples.seen") == 180


def test_state_of_another_bundle_profile_or_form_is_refused(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(30, seed=0))
    look(bundle, store, source)
    make_profile(bundle, images(), store=store, max_samples=300)
    with pytest.raises(InputRefused, match="another profile"):
        look(bundle, store, source)
    path = tmp_path / "out" / "state.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputRefused, match="not a monitor's state"):
        look(bundle, store, source)
    assert load_state(tmp_path / "none.json", bundle, store.reports(bundle.digest)["profile"], alpha=0.1).num_samples == 0


def test_what_cannot_be_watched_is_refused_with_what_to_type(store: Store, tmp_path: Path) -> None:
    bundle = stored(store, trained(num_epochs=3, seed=1))
    with pytest.raises(UsageError, match="data@reference"):
        look(bundle, store, tmp_path)
    make_profile(bundle, images(), store=store, max_samples=100)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(b'{"probabilities": [3.1, -2, 0.4]}\n')
    with pytest.raises(InputRefused, match="softmax"):
        look(bundle, store, source)
    with pytest.raises(UsageError, match="interval_s"):
        look(bundle, store, source, interval_s=0.0)


def test_metrics_are_valid_and_served(store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(300, seed=0, shares=(0.8, 0.1, 0.1), right=0.9))
    look(bundle, store, source)
    families = {f.name: f for f in text_string_to_metric_families((tmp_path / "out" / "metrics.prom").read_text())}
    assert families["model_monitor_samples"].samples[0].value == 300
    alarms = {sample.labels["test"]: sample.value for sample in families["model_monitor_alarm"].samples}
    assert alarms["answers"] == 1.0
    assert sum(sample.value for sample in families["model_monitor_answers"].samples) == 300
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(EnvironmentProblem, match=r"model-upgrade-toolkit\[monitor\]"), serve_metrics(9108):
        pass


def test_following_serves_metrics_reads_what_arrives_and_ends_saved_with_143(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(120, seed=0))
    port = free_port()
    store.aliases.promote("production", bundle.digest)
    settings = [f"source={source}", f"store={store.root}", f"output={tmp_path / 'out'}", "follow=true", "interval_s=0.2"]
    process = Child(COMMAND, "monitor", *settings, f"port={port}", cwd=tmp_path)
    try:
        assert _served(port, "model_monitor_samples_total", process) == 120
        (source / "b.jsonl").write_bytes(lines(40, seed=1))
        deadline = time.monotonic() + 60
        while _served(port, "model_monitor_samples_total", process) != 160 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, process.stderr
    finally:
        process.kill()
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert state["num_samples"] == 160


def _served(port: int, name: str, process: Child) -> float:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            values = [float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(name)]
            if values:
                return values[0]
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"nothing served on port {port}")
