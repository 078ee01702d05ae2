"""The sender of a journal: what it sends, what it records, and the 23-hour rule.

Loops and the clocks are imitated, so that hours take no time. The journal is the
real one, on a database in memory that outlives each imitated process.
"""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual
from support.transports import FakeTransport, make_sender

from loops_async import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    JournalError,
    LoopsError,
    RetryPolicy,
)
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Response
from loops_async._http.request import Request
from loops_async._journal.database import _commit, _Job
from loops_async._journal.journal import OUTBOX, Journal, RowIds
from loops_async._journal.records import Row
from loops_async._journal.sender import KNOWN_FOR, JournalSender
from loops_async._sending.sender import Sender

HOUR = 3600.0


class InMemory(Journal):
    """A journal that runs each job at once, and whose disk can be full.

    Attributes:
        full: Whether every job that writes fails.
        killed: Whether the process was killed: jobs neither run nor end.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.full = False
        self.killed = False
        self._failed: list[_Job[Any]] = []  # to be repeated
        self._groups = []
        self._ids = RowIds()
        self._database = self  # type: ignore[assignment]

    def submit(
        self, work: Any, *, until_durable: bool = False, deferrable: bool = False
    ) -> Any:
        done = asyncio.get_running_loop().create_future()
        if not self.killed:
            self._run(_Job(self._unless_full(work), done, until_durable))
        return done

    def wake(self) -> None:
        raise NotImplementedError

    def _run(self, job: _Job[Any]) -> None:
        _commit(Path("memory"), self.db, [job])
        if job.failure is None:
            job.done.set_result(job.result)
        elif job.until_durable:
            self._failed.append(job)
        else:
            job.done.set_exception(job.failure)

    def _unless_full(self, work: Any) -> Any:
        def checked(db: sqlite3.Connection) -> Any:
            before = db.total_changes
            result = work(db)
            if self.full and db.total_changes > before:
                raise JournalError("the disk is full")
            return result

        return checked

    def make_room(self) -> None:
        self.full = False
        failed, self._failed = self._failed, []
        for job in failed:
            self._run(job)

    def fail_jobs(self) -> None:
        """Fail the jobs that were to be repeated, as closing does."""
        for job in self._failed:
            job.done.set_exception(JournalError("the journal is closed"))

    def column(self, name: str) -> list[Any]:
        query = f"SELECT {name} FROM events ORDER BY id"
        return [value for (value,) in self.db.execute(query)]


@contextmanager
def database(count: int, contacts: int | None = None) -> Iterator[sqlite3.Connection]:
    """Open a database with that many pending events."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in OUTBOX.schema:
            db.execute(statement)
        insert(db, count, contacts)
        yield db


def insert(db: sqlite3.Connection, count: int, contacts: int | None = None) -> None:
    """Add pending events, for that many contacts or one contact each."""
    for number in range(count):
        email = f"u{number % (contacts or count)}@b.co"
        db.execute(
            "INSERT INTO events (key, body, email, at) VALUES (?, ?, ?, 0)",
            (f"k{number}", b'{"n":%d}' % number, email),
        )


@attrs.define
class Clocks:
    """Clocks that advance with the event loop; a test can move two of them.

    Attributes:
        wall: The wall clock, which the administrator can set.
        steady: The monotonic clock, which starts again with the machine.
        true: The time that passed.
    """

    wall: float = 1.7e9
    steady: float = 1000.0
    true: float = 0.0

    def read_wall(self) -> float:
        return self.wall + self._elapsed()

    def read_steady(self) -> float:
        return self.steady + self._elapsed()

    def read_true(self) -> float:
        return self.true + self._elapsed()

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time()

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds
        self.true += seconds


LOST = "lost"
REFUSED = "refused"
Reply = int | str
"""A status, or LOST for a lost response, or REFUSED for a refused connection."""


@attrs.define(eq=False)
class FakeLoops(FakeTransport):
    """A transport to a Loops whose replies the test decides by key.

    Attributes:
        reply_to: Returns the reply to a request with the key.
        duration: Returns the seconds that a request takes.
        on_reply: Called with the key and the reply when the reply arrives.
        requests: The key and the reply of each request.
    """

    reply_to: Callable[[str], Reply]
    duration: Callable[[], float] = lambda: 0.1
    on_reply: Callable[[str, Reply], object] = lambda key, reply: None
    requests: list[tuple[str, Reply]] = attrs.field(factory=list)

    async def exchange(
        self, request: Request, api_key: Secret, timeout: float | None
    ) -> Response | LoopsError:
        assert request.key is not None
        reply = self.reply_to(request.key)
        self.requests.append((request.key, reply))
        await asyncio.sleep(self.duration())
        self.on_reply(request.key, reply)
        if reply == LOST:
            return ConnectionLostError("reset", retryable=True, maybe_accepted=True)
        if reply == REFUSED:
            return ConnectFailedError("refused", retryable=True)
        assert isinstance(reply, int)
        body = b'{"success":true}' if reply == 200 else b'{"message":"no"}'
        return Response(reply, {}, body)


def sender_to(loops: FakeLoops) -> Sender:
    async def connect() -> FakeLoops:
        return loops

    policy = RetryPolicy(base=1.0, cap=20.0)
    return make_sender(connect, deadline=None, retry=policy)


@attrs.define(eq=False)
class Process:
    """The memory of a process: a journal, its sender, and the rows that ended.

    Attributes:
        ends: The key and the final state of each row that ended durably.
    """

    journal: InMemory
    clocks: Clocks
    reply_to: Callable[[str], Reply]
    retain: bool = True
    duration: Callable[[], float] = lambda: 0.1
    on_end: Callable[[Row, str], object] = lambda row, state: None
    on_reply: Callable[[str, Reply], object] = lambda key, reply: None
    ends: list[tuple[str, str]] = attrs.field(factory=list)
    loops: FakeLoops = attrs.field(init=False)
    sender: JournalSender = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.loops = FakeLoops(self.reply_to, self.duration, self.on_reply)
        self.sender = JournalSender(
            self.journal,
            sender_to(self.loops),
            look_ahead=10_000,
            retain=self.retain,
            on_end=self._note_end,
            clock=self.clocks.read_wall,
            steady=self.clocks.read_steady,
        )

    def _note_end(self, row: Row, state: str) -> None:
        self.ends.append((row.idempotency_key, state))
        self.on_end(row, state)

    @property
    def requests(self) -> list[tuple[str, Reply]]:
        return self.loops.requests


def script(*replies: Reply) -> Callable[[str], Reply]:
    """Give these replies, then 200."""
    left = list(replies)
    return lambda key: left.pop(0) if left else 200


# Random lives of a journal, whose rules must always hold.


@attrs.frozen
class Attempted:
    """The clocks and the process of an attempt."""

    wall: float
    steady: float
    process: int


@attrs.define(eq=False)
class Life:
    """Several processes, one after another, on one journal.

    Attributes:
        unsure: By key, the first attempt whose outcome is not known.
        latest: By key, the latest attempt.
        ended: By key, the final state.
        accepted: By key, the true times at which Loops accepted the event.
        odd: Keys whose mark may be left although its attempt was refused.
        set_back: Whether the wall clock was set back.
        accept_all: Whether Loops accepts every event.
    """

    dice: random.Random
    db: sqlite3.Connection
    clocks: Clocks = attrs.field(factory=Clocks)
    process: int = 0
    journal: InMemory = attrs.field(init=False)
    accept_all: bool = False
    unsure: dict[str, Attempted] = attrs.field(factory=dict)
    latest: dict[str, Attempted] = attrs.field(factory=dict)
    ended: dict[str, str] = attrs.field(factory=dict)
    accepted: dict[str, list[float]] = attrs.field(factory=dict)
    odd: set[str] = attrs.field(factory=set)
    set_back: bool = False
    sent: int = 0
    kills: int = 0

    def live(self) -> None:
        for _ in range(self.dice.randrange(4)):
            virtual.run(self._run_until_killed())
            self._move_clocks(between=True)
        self.accept_all = True
        virtual.run(self._run_to_the_end())

    def _start_process(self) -> Process:
        self.process += 1
        self.journal = InMemory(self.db)
        return Process(
            self.journal,
            self.clocks,
            self._reply_to,
            duration=lambda: self.dice.uniform(0.01, 20),
            on_end=self._note_end,
            on_reply=self._note_reply,
        )

    async def _run_until_killed(self) -> None:
        process = self._start_process()

        async def run() -> None:
            while True:
                await process.sender.run()
                await asyncio.sleep(self.dice.uniform(1, 60))

        running = asyncio.create_task(run())
        await asyncio.sleep(self.dice.expovariate(1 / 90))
        self.journal.killed = True
        self.kills += 1
        running.cancel()
        await asyncio.wait([running])
        self.clocks.advance(asyncio.get_running_loop().time())

    async def _run_to_the_end(self) -> None:
        process = self._start_process()
        assert await process.sender.run(until_empty=True) is None

    def _move_clocks(self, *, between: bool = False) -> None:
        """Let time pass, set the wall clock, restart the machine, or none of it."""
        if self.dice.random() < (0.7 if between else 0.2):
            self.clocks.advance(self.dice.expovariate(1 / (9 * HOUR)))
        if self.dice.random() < (0.3 if between else 0.1):
            change = self.dice.gauss(0, 9 * HOUR)
            self.clocks.wall += change
            self.set_back = self.set_back or change < 0
        if between and self.dice.random() < 0.5:
            self.clocks.steady = self.dice.uniform(0, 1000)

    def _reply_to(self, key: str) -> Reply:
        """Check that the event may be sent now, and choose a reply at random."""
        assert key not in self.ended
        assert key not in self.unsure or not self._is_too_old(self.unsure[key])
        self.sent += 1
        clocks = self.clocks
        now = Attempted(clocks.read_wall(), clocks.read_steady(), self.process)
        self.latest[key] = now
        self.unsure.setdefault(key, now)
        reply: Reply = 200
        if not self.accept_all:
            replies = [200, 400, 401, 429, 429, REFUSED, 500, LOST, LOST]
            reply = self.dice.choice(replies)
        if reply == 200 or (reply in (500, LOST) and self.dice.random() < 0.5):
            times = self.accepted.setdefault(key, [])
            if times and clocks.read_true() - times[-1] < 24 * HOUR:
                reply = 409 if reply == 200 else reply
            else:
                times.append(clocks.read_true())
        self._move_clocks()
        return reply

    def _note_reply(self, key: str, reply: Reply) -> None:
        if self.journal.killed or reply not in (401, 429, REFUSED):
            return
        if self.unsure[key] is self.latest[key]:
            del self.unsure[key]
            if reply == 401:  # recorded a moment later
                self.odd.add(key)

    def _is_too_old(self, unsure: Attempted) -> bool:
        age = self.clocks.read_wall() - unsure.wall
        if unsure.process == self.process:
            age = max(age, self.clocks.read_steady() - unsure.steady)
        return not 0 <= age <= KNOWN_FOR

    def _note_end(self, row: Row, state: str) -> None:
        key = row.idempotency_key
        assert key not in self.ended
        self.ended[key] = state
        if state in ("accepted", "duplicate"):
            assert self.accepted[key]
        if state == "unknown" and key not in self.odd:
            assert key in self.unsure
        if state == "rejected":
            assert not self.accepted.get(key)


@pytest.mark.parametrize(
    "lives", [200, pytest.param(1000, marks=pytest.mark.soak, id="soak")]
)
def test_an_event_whose_outcome_was_unknown_for_23_hours_is_not_sent_again(
    lives: int,
) -> None:
    """In spite of kills, lost responses, and clocks that are set."""
    sent = kills = 0
    ended: list[str] = []
    for seed in range(lives):
        with database(4, contacts=3) as db:
            life = Life(random.Random(seed), db)
            life.live()
        assert len(life.ended) == 4, seed
        if not life.set_back:
            assert all(len(times) == 1 for times in life.accepted.values()), seed
        sent += life.sent
        kills += life.kills
        ended += life.ended.values()
    # Every case occurred.
    assert kills > lives
    assert sent > 6 * lives
    for state in ("accepted", "duplicate", "rejected", "unknown"):
        assert ended.count(state) > lives / 10, state


# One rule at a time.


def live(
    db: sqlite3.Connection,
    reply_to: Callable[[str], Reply],
    clocks: Clocks | None = None,
    **settings: Any,
) -> Process:
    """Run a process until no row is pending, and return it."""

    async def main() -> Process:
        process = Process(InMemory(db), clocks or Clocks(), reply_to, **settings)
        assert await process.sender.run(until_empty=True) is None
        return process

    return virtual.run(main())


def mark(db: sqlite3.Connection, at: float, attempts: int = 1) -> None:
    """Mark the rows as in flight, as a process that was killed did."""
    db.execute("UPDATE events SET ambiguous_since = ?, attempts = ?", (at, attempts))


def test_a_row_is_marked_before_its_first_request_is_sent() -> None:
    with database(1) as db:
        marks = []

        def reply_to(key: str) -> Reply:
            marks.append(InMemory(db).column("ambiguous_since"))
            return 200

        live(db, reply_to)
        assert marks == [[1.7e9]]


def test_the_mark_of_the_first_lost_response_stays_through_later_attempts() -> None:
    with database(1) as db:
        marks = []
        replies = script(LOST, 429, 500, REFUSED)

        def reply_to(key: str) -> Reply:
            marks.extend(InMemory(db).column("ambiguous_since"))
            return replies(key)

        process = live(db, reply_to)
        assert marks == [1.7e9] * 5
        assert process.ends == [("k0", "accepted")]
        assert InMemory(db).column("attempts") == [5]


@pytest.mark.parametrize("definite", [429, REFUSED])
def test_a_definite_refusal_removes_the_mark_that_was_made_for_its_attempt(
    definite: Reply,
) -> None:
    with database(1) as db:
        marks = []
        replies = script(definite, definite, LOST, definite)

        def reply_to(key: str) -> Reply:
            marks.extend(InMemory(db).column("ambiguous_since"))
            return replies(key)

        live(db, reply_to)
        first, second, third, *later = marks
        assert first < second < third
        assert later == [third, third]


def test_a_400_rejects_an_event_only_if_no_earlier_response_was_lost() -> None:
    with database(2) as db:
        live(db, lambda key: script(400)(key) if key == "k0" else 200)
        assert InMemory(db).column("state") == ["rejected", "accepted"]
    with database(1) as db:
        live(db, script(LOST, 400))
        assert InMemory(db).column("state") == ["unknown"]
        assert InMemory(db).column("attempts") == [2]


@pytest.mark.parametrize(
    ("age", "state"),
    [
        pytest.param(0.0, "accepted", id="now"),
        pytest.param(KNOWN_FOR - 1, "accepted", id="almost 23 h"),
        pytest.param(KNOWN_FOR + 1, "unknown", id="more than 23 h"),
        pytest.param(-1.0, "unknown", id="in the future"),
    ],
)
def test_the_age_of_an_earlier_processs_mark_is_measured_by_the_wall_clock(
    age: float, state: str
) -> None:
    with database(1) as db:
        mark(db, 1.7e9 - age)
        process = live(db, script())
        assert process.ends == [("k0", state)]
        assert len(process.requests) == (state == "accepted")
        assert InMemory(db).column("attempts") == [1 + (state == "accepted")]


def test_a_process_also_measures_the_age_of_its_own_marks_by_the_monotonic_clock() -> (
    None
):
    with database(1) as db:
        clocks = Clocks()

        def reply_to(key: str) -> Reply:
            clocks.steady += 24 * HOUR  # the wall clock is set back as far
            return LOST

        process = live(db, reply_to, clocks)
        assert process.ends == [("k0", "unknown")]
        (error,) = InMemory(db).column("error")
        assert "24.0 h old" in error
        assert InMemory(db).column("attempts") == [1]  # no second request


def test_a_wall_clock_that_is_set_back_does_not_end_an_event_of_the_process() -> None:
    with database(1) as db:
        clocks = Clocks()
        replies = script(LOST)

        def reply_to(key: str) -> Reply:
            clocks.wall -= HOUR
            return replies(key)

        assert live(db, reply_to, clocks).ends == [("k0", "accepted")]


def test_a_process_remembers_the_monotonic_time_of_its_marks_between_runs() -> None:
    """A refused API key pauses sending for a day; the wall clock is set back."""
    with database(1) as db:
        clocks = Clocks()

        async def main() -> Process:
            process = Process(InMemory(db), clocks, script(LOST, 401))
            stopped_by = await process.sender.run()
            assert stopped_by is not None
            assert "401" in str(stopped_by)
            assert process.journal.column("attempts") == [2]
            clocks.advance(24 * HOUR)
            clocks.wall -= 20 * HOUR
            assert await process.sender.run(until_empty=True) is None
            return process

        process = virtual.run(main())
        assert process.ends == [("k0", "unknown")]
        assert len(process.requests) == 2


def test_a_mark_ages_by_the_monotonic_clock_from_the_time_at_which_it_was_read() -> (
    None
):
    with database(2, contacts=1) as db:
        mark(db, 1.7e9 - HOUR)
        clocks = Clocks()

        def reply_to(key: str) -> Reply:
            assert key == "k0"
            clocks.advance(24 * HOUR)  # the contact's next event has to wait
            clocks.wall -= 23.5 * HOUR
            return 200

        process = live(db, reply_to, clocks)
        assert process.ends == [("k0", "accepted"), ("k1", "unknown")]


def test_a_409_confirms_an_attempt_whose_outcome_was_lost_and_no_other() -> None:
    with database(1) as db:
        mark(db, 1.7e9 - HOUR)
        assert live(db, script(409)).ends == [("k0", "duplicate")]
    with database(1) as db:
        db.execute("UPDATE events SET attempts = 3")
        assert live(db, script(409)).ends == [("k0", "unknown")]


def test_a_refused_api_key_stops_the_run_and_all_rows_stay_pending() -> None:
    with database(300) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), lambda key: 401)
            process.sender.stop()  # has no effect before the run
            stopped_by = await process.sender.run()
            assert type(stopped_by).__name__ == "AuthenticationError"
            assert process.sender.retrying == 0  # no row is in memory
            return process

        process = virtual.run(main())
        assert set(process.journal.column("state")) == {"pending"}
        assert sum(process.journal.column("attempts")) == len(process.requests)
        assert process.journal.column("ambiguous_since") == [None] * 300
        assert "401" in next(filter(None, process.journal.column("error")))


def test_a_run_that_was_stopped_can_be_continued() -> None:
    with database(500) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(), retain=False)
            process.on_end = lambda row, state: (
                process.sender.stop() if len(process.ends) == 100 else None
            )
            assert isinstance(await process.sender.run(), ClientClosedError)
            await virtual.settle()
            assert 100 <= len(process.requests) < 400
            assert len(process.ends) == len(process.requests)
            assert await process.sender.run(until_empty=True) is None
            return process

        process = virtual.run(main())
        assert len(process.requests) == 500
        assert process.journal.column("id") == []


def test_a_run_waits_for_new_rows_and_counts_the_rows_that_are_retried() -> None:
    with database(0) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(500, LOST))
            running = asyncio.create_task(process.sender.run())
            await virtual.settle()
            assert process.requests == []
            insert(db, 2)
            process.sender.wake()
            await asyncio.sleep(0.15)
            assert process.sender.retrying == 2
            await asyncio.sleep(100)
            assert process.sender.retrying == 0
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return process

        assert len(virtual.run(main()).ends) == 2


def test_a_full_disk_stops_the_run_before_a_request_is_sent() -> None:
    with database(3) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script())
            process.journal.full = True
            stopped_by = await process.sender.run()
            assert isinstance(stopped_by, JournalError)
            assert process.requests == []
            process.journal.make_room()
            assert await process.sender.run(until_empty=True) is None
            return process

        assert len(virtual.run(main()).ends) == 3


@pytest.mark.parametrize("retain", [True, False])
def test_a_row_that_ended_is_not_sent_again_before_its_end_is_durable(
    retain: bool,
) -> None:
    with database(4, contacts=2) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(), retain=retain)

            def fill_disk(key: str) -> Reply:
                process.journal.full = True
                return 200

            process.loops.reply_to = fill_disk
            assert isinstance(await process.sender.run(), JournalError)
            sent = list(process.requests)
            assert len(sent) in (1, 2)
            assert process.ends == []
            for _ in range(3):
                assert isinstance(await process.sender.run(), JournalError)
            assert process.requests == sent
            process.loops.reply_to = script()
            process.journal.make_room()
            assert len(process.ends) == 0
            await virtual.settle()
            assert len(process.ends) == len(sent)
            assert await process.sender.run(until_empty=True) is None
            return process

        process = virtual.run(main())
        assert sorted(key for key, _ in process.requests) == ["k0", "k1", "k2", "k3"]
        assert sorted(key for key, _ in process.ends) == ["k0", "k1", "k2", "k3"]


def test_an_end_that_is_never_durable_is_not_reported() -> None:
    with database(1) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script())
            running = asyncio.create_task(process.sender.run())
            await virtual.settle()
            process.journal.full = True
            await asyncio.sleep(1)
            process.journal.fail_jobs()
            await virtual.settle()
            running.cancel()
            await asyncio.wait([running])
            return process

        process = virtual.run(main())
        assert process.ends == []
        assert process.requests == [("k0", 200)]
        assert process.journal.column("state") == ["pending"]


def test_a_journal_that_cannot_be_read_stops_the_run() -> None:
    with database(1) as db:

        async def main() -> LoopsError | None:
            process = Process(InMemory(db), Clocks(), script())
            db.execute("ALTER TABLE events RENAME TO missing")
            return await process.sender.run()

        stopped_by = virtual.run(main())
        assert isinstance(stopped_by, JournalError)
        assert "no such table" in str(stopped_by)
