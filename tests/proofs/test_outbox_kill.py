"""The promise of the outbox: SIGKILL at any moment loses no acknowledged event.

50 producers put events into one file, while the outbox sends them to a sandbox in
another process, where three requests in ten meet a fault. The process is killed
again and again, and each time a new one continues with the same file and sandbox.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from support import outboxes
from support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

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


def kill_and_check(folder: Path, kills: int, seed: int) -> str:
    """Kill processes, let the last one send the rest, and check the outcome."""
    dice = random.Random(seed)
    journal, log = folder / "events.db", folder / "acknowledged"
    with SandboxProcess(rate_limit=None, seed=seed, faults=FAULTS) as sandbox:
        sizes = []  # of the log of acknowledged events, at each kill
        for run in range(kills):
            process = start(journal, log, sandbox, run, producers=50)
            if run % 2 == 0:  # the others may be killed before their first put
                before = sizes[-1] if sizes else 0
                while not (log.exists() and log.stat().st_size > before):
                    assert process.poll() is None
                    time.sleep(0.002)
            time.sleep(dice.uniform(0.2, 0.9))
            sizes.append(log.stat().st_size)
            process.kill()
            process.communicate()
            assert process.returncode == -9
        process = start(journal, log, sandbox, kills, producers=0)
        _, stderr = process.communicate(timeout=110)
        assert process.returncode == 0, stderr
        assert b"Traceback" not in stderr
        accepted = sandbox.get("state")["events"]
        counts = sandbox.get("counts")

    acknowledged = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(set(sizes)) >= kills // 2
    keys = Counter(event["idempotency_key"] for event in accepted)
    assert {key for *_, key in acknowledged} <= set(keys)
    assert set(keys.values()) == {1}
    by_contact = defaultdict(list)
    for event in accepted:
        properties = event["event_properties"]
        by_contact[event["email"]].append((properties["run"], properties["number"]))
    for sent in by_contact.values():
        assert sent == sorted(set(sent))
    # At a kill each producer waits for at most one put.
    assert len(accepted) - len(acknowledged) <= 50 * kills

    assert outboxes.verdict(journal) == "ok"
    assert outboxes.rows(journal) == []
    faults = sum(counts["faults"].values())
    assert 0.2 < faults / counts["requests"] < 0.4
    return (
        f"{kills} kills, {len(acknowledged)} events acknowledged, {len(accepted)} "
        f"accepted, none lost or sent twice; {counts['requests']} requests, {faults} "
        f"with a fault, {counts['duplicates']} recognized by their key"
    )


def start(
    journal: Path, log: Path, sandbox: SandboxProcess, run: int, producers: int
) -> "subprocess.Popen[bytes]":
    settings = {
        "path": str(journal),
        "url": sandbox.url,
        "key": sandbox.api_key,
        "run": run,
        "producers": producers,
        "acknowledged": str(log),
    }
    command = [sys.executable, outboxes.__file__, json.dumps(settings)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def test_four_kills_lose_no_event_and_send_none_twice(
    tmp_path: Path, record_figures: Callable[[str], None]
) -> None:
    record_figures(kill_and_check(tmp_path, 4, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_50_kills_lose_no_event_and_send_none_twice(
    tmp_path: Path, record_figures: Callable[[str], None]
) -> None:
    record_figures(kill_and_check(tmp_path, 50, seed=2))
