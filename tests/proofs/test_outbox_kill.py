"""The outbox's promise: kill -9 at any moment loses nothing that was acknowledged.

50 producers put into one file while it is sent to a sandbox in a process of its
own, where three requests in ten meet a fault. The process is killed again and
again; the file and the sandbox go on.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import outboxes
from support.sandbox_process import Elsewhere

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="there are no signals to kill with"
)

FAULTS = {
    "429": 0.05,
    "500-before": 0.04,
    "502": 0.03,
    "close-before": 0.03,
    "hang-before": 0.002,
    "500-after": 0.04,
    "html-after": 0.03,
    "empty-after": 0.03,
    "close-after": 0.03,
    "truncate-after": 0.02,
    "hang-after": 0.002,
}


def kill_and_check(path: Path, kills: int, seed: int) -> str:
    """Kill so many times, let the last one end, and check the books."""
    dice = random.Random(seed)
    journal, told = path / "events.db", path / "acknowledged"
    with Elsewhere(rate_limit=None, seed=seed, faults=FAULTS) as sandbox:
        killed_at = []
        for run in range(kills):
            process = start(journal, told, sandbox, run, producers=50)
            if run % 2 == 0:  # the others may die before they have put anything
                before = killed_at[-1] if killed_at else 0
                while not (told.exists() and told.stat().st_size > before):
                    assert process.poll() is None
                    time.sleep(0.002)
            time.sleep(dice.uniform(0.2, 0.9))
            killed_at.append(told.stat().st_size)
            process.kill()
            process.communicate()
            assert process.returncode == -9
        process = start(journal, told, sandbox, kills, producers=0)
        _, complaint = process.communicate(timeout=110)
        assert process.returncode == 0, complaint
        assert b"Traceback" not in complaint
        accepted = sandbox.look("state")["events"]
        counts = sandbox.look("counts")

    promised = [json.loads(line) for line in told.read_text().splitlines()]
    assert len(set(killed_at)) >= kills // 2
    keys = Counter(one["idempotency_key"] for one in accepted)
    assert {key for *_, key in promised} <= set(keys)
    assert set(keys.values()) == {1}
    in_order = defaultdict(list)
    for one in accepted:
        properties = one["event_properties"]
        in_order[one["email"]].append((properties["run"], properties["number"]))
    for sent in in_order.values():
        assert sent == sorted(set(sent))
    # What was not acknowledged is at most what each producer was waiting for.
    assert len(accepted) - len(promised) <= 50 * kills

    assert outboxes.verdict(journal) == "ok"
    assert outboxes.rows(journal) == []
    faults = sum(counts["faults"].values())
    assert 0.2 < faults / counts["requests"] < 0.4
    return (
        f"{kills} kills, {len(promised)} events acknowledged, {len(accepted)} "
        f"accepted, none lost or twice; {counts['requests']} requests, {faults} "
        "faulted, "
        f"{counts['duplicates']} recognised by their key"
    )


def start(
    journal: Path, told: Path, sandbox: Elsewhere, run: int, producers: int
) -> "subprocess.Popen[bytes]":
    settings = {
        "path": str(journal),
        "url": sandbox.url,
        "key": sandbox.key,
        "run": run,
        "producers": producers,
        "acknowledged": str(told),
    }
    command = [sys.executable, outboxes.__file__, json.dumps(settings)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def test_four_kills_lose_nothing_and_send_nothing_twice(
    tmp_path: Path, record_property: Any
) -> None:
    record_property("figures", kill_and_check(tmp_path, 4, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_50_kills_lose_nothing_and_send_nothing_twice(
    tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = kill_and_check(tmp_path, 50, seed=2)
    record_property("figures", figures)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
