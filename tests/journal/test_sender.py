"""What is sent from a journal, and what never again: the 23-hour rule.

Loops and time are imitated, so that hours pass in no time; the journal is the
real one, on a database in memory that outlives each process that is imitated.
"""

import asyncio
import math
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    JournalError,
    LoopsError,
    RetryPolicy,
)
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Request, Response
from loops_async._journal.database import _commit, _Order
from loops_async._journal.journal import OUTBOX, Ids, Journal, Row
from loops_async._journal.sender import KNOWN_FOR, JournalSender
from loops_async._sending.delivery import Delivery

HOUR = 3600.0


class InMemory(Journal):
    """A journal whose works are done at once, and which can be cut off."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.full = False
        self.cut_off = False
        self._kept: list[_Order[Any]] = []
        self._adding = []
        self._ids = Ids()
        self._store = self  # type: ignore[assignment]
        self.do = self._do

    def _do(self, work: Any, *, keep: bool = False, **_: object) -> Any:
        done = asyncio.get_running_loop().create_future()
        if self.cut_off:
            return done
        order = _Order(self._unless_full(work), done, keep)
        self._try(order)
        return done

    def wake(self) -> None:
        raise NotImplementedError

    def _try(self, order: _Order[Any]) -> None:
        _commit(Path("memory"), self.db, [order])
        if order.failure is None:
            order.done.set_result(order.result)
        elif order.keep:
            self._kept.append(order)
        else:
            order.done.set_exception(order.failure)

    def _unless_full(self, work: Any) -> Any:
        def checked(db: sqlite3.Connection) -> Any:
            before = db.total_changes
            result = work(db)
            if self.full and db.total_changes > before:
                raise JournalError("it is full")
            return result

        return checked

    def make_room(self) -> None:
        self.full = False
        kept, self._kept = self._kept, []
        for order in kept:
            self._try(order)

    def give_up(self) -> None:
        for order in self._kept:
            order.done.set_exception(JournalError("it is closed"))

    def look(self, column: str) -> list[Any]:
        query = f"SELECT {column} FROM events ORDER BY id"
        return [value for (value,) in self.db.execute(query)]


@contextmanager
def database(count: int, contacts: int | None = None) -> Iterator[sqlite3.Connection]:
    """One with so many pending events."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in OUTBOX.schema:
            db.execute(statement)
        insert(db, count, contacts)
        yield db


def insert(db: sqlite3.Connection, count: int, contacts: int | None = None) -> None:
    """Add so many pending events."""
    for number in range(count):
        email = f"u{number % (contacts or count)}@b.co"
        db.execute(
            "INSERT INTO events (key, body, email, at) VALUES (?, ?, ?, 0)",
            (f"k{number}", b'{"n":%d}' % number, email),
        )


@attrs.define
class Clocks:
    """Clocks that go with the loop; all but the true one can be moved."""

    wall: float = 1.7e9
    steady: float = 1000.0
    true: float = 0.0

    def now(self) -> float:
        return self.wall + self._passed()

    def steadily(self) -> float:
        return self.steady + self._passed()

    def truly(self) -> float:
        return self.true + self._passed()

    def _passed(self) -> float:
        return asyncio.get_running_loop().time()

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds
        self.true += seconds


LOST = "lost"
REFUSED = "refused"
Said = int | str


@attrs.define(eq=False)
class Loops:
    """A transport to a Loops that says what it is told to, key by key."""

    says: Callable[[str], Said]
    takes: Callable[[], float] = lambda: 0.1
    answered: Callable[[str, Said], object] = lambda key, said: None
    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    asked: list[tuple[str, Said]] = attrs.field(factory=list)
    max_connections: int = 100
    usable: bool = True
    in_flight: int = 0

    async def exchange(
        self, call: Request, secret: Secret, limit: float | None
    ) -> Response | LoopsError:
        assert call.key is not None
        said = self.says(call.key)
        self.asked.append((call.key, said))
        await asyncio.sleep(self.takes())
        self.answered(call.key, said)
        if said == LOST:
            return ConnectionLostError("reset", retryable=True, maybe_accepted=True)
        if said == REFUSED:
            return ConnectFailedError("refused", retryable=True)
        assert isinstance(said, int)
        body = b'{"success":true}' if said == 200 else b'{"message":"no"}'
        return Response(said, {}, body, False, None)

    async def close(self, grace: float) -> None:
        self.usable = False


def client_of(loops: Loops) -> AsyncLoopsClient:
    client = AsyncLoopsClient(
        "key", rate_limit=math.inf, retry=RetryPolicy(base=1.0, cap=20.0)
    )
    client._latest = client._deliveries[loops.loop] = Delivery(
        loops,  # type: ignore[arg-type]  # looks like a transport
        api_key=client._api_key,
        limiter=None,
        policy=client._retry,
        on_attempt=None,
    )
    return client


@attrs.define(eq=False)
class Process:
    """What a process has in memory: a drain, its client, and what it was told."""

    journal: InMemory
    clocks: Clocks
    says: Callable[[str], Said]
    keep: bool = True
    takes: Callable[[], float] = lambda: 0.1
    ends: list[tuple[str, str]] = attrs.field(factory=list)
    on_end: Callable[[Row, str], object] = lambda row, state: None
    answered: Callable[[str, Said], object] = lambda key, said: None
    loops: Loops = attrs.field(init=False)
    drain: JournalSender = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.loops = Loops(self.says, self.takes, self.answered)
        self.drain = JournalSender(
            self.journal,
            client_of(self.loops),
            look_ahead=10_000,
            keep=self.keep,
            on_end=self._ended,
            clock=self.clocks.now,
            steady=self.clocks.steadily,
        )

    def _ended(self, row: Row, state: str) -> None:
        self.ends.append((row.idempotency_key, state))
        self.on_end(row, state)

    @property
    def asked(self) -> list[tuple[str, Said]]:
        return self.loops.asked


def script(*said: Said) -> Callable[[str], Said]:
    """Say these, then 200."""
    left = list(said)
    return lambda key: left.pop(0) if left else 200


# What no life of a journal may show, whatever the dice say.


@attrs.frozen
class Attempted:
    """The first attempt of an event of which nobody knows."""

    wall: float
    steady: float
    process: int


@attrs.define(eq=False)
class Life:
    """Several processes in a row on one journal, with dice and books.

    Attributes:
        unsure: By key, since when nobody knows whether it was accepted.
        latest: By key, its latest attempt.
        ended: By key, how.
        taken: By key, true times at which Loops accepted it.
        odd: Keys of which a stamp may be left though its attempt was refused.
        set_back: Whether the wall clock ever was.
    """

    dice: random.Random
    db: sqlite3.Connection
    clocks: Clocks = attrs.field(factory=Clocks)
    process: int = 0
    journal: InMemory = attrs.field(init=False)
    kind: bool = False  # Loops takes everything
    unsure: dict[str, Attempted] = attrs.field(factory=dict)
    latest: dict[str, Attempted] = attrs.field(factory=dict)
    ended: dict[str, str] = attrs.field(factory=dict)
    taken: dict[str, list[float]] = attrs.field(factory=dict)
    odd: set[str] = attrs.field(factory=set)
    set_back: bool = False
    sent: int = 0
    kills: int = 0

    def live(self) -> None:
        for _ in range(self.dice.randrange(4)):
            virtual.run(self._until_killed())
            self._jump(between=True)
        self.kind = True
        virtual.run(self._to_the_end())

    def _begin(self) -> Process:
        self.process += 1
        self.journal = InMemory(self.db)
        return Process(
            self.journal,
            self.clocks,
            self._says,
            takes=lambda: self.dice.uniform(0.01, 20),
            on_end=self._note_end,
            answered=self._answered,
        )

    async def _until_killed(self) -> None:
        process = self._begin()

        async def run() -> None:
            while True:
                await process.drain.run()
                await asyncio.sleep(self.dice.uniform(1, 60))

        running = asyncio.create_task(run())
        await asyncio.sleep(self.dice.expovariate(1 / 90))
        self.journal.cut_off = True
        self.kills += 1
        running.cancel()
        await asyncio.wait([running])
        process.loops.usable = False
        self.clocks.pass_by(asyncio.get_running_loop().time())

    async def _to_the_end(self) -> None:
        process = self._begin()
        assert await process.drain.run(until_empty=True) is None
        process.loops.usable = False

    def _jump(self, *, between: bool = False) -> None:
        """Let time pass, or somebody set the wall clock, or both."""
        if self.dice.random() < (0.7 if between else 0.2):
            self.clocks.pass_by(self.dice.expovariate(1 / (9 * HOUR)))
        if self.dice.random() < (0.3 if between else 0.1):
            by = self.dice.gauss(0, 9 * HOUR)
            self.clocks.wall += by
            self.set_back = self.set_back or by < 0
        if between and self.dice.random() < 0.5:  # the machine was started anew
            self.clocks.steady = self.dice.uniform(0, 1000)

    def _says(self, key: str) -> Said:
        """Check that the event may be sent now, and throw dice for the answer."""
        assert key not in self.ended
        assert key not in self.unsure or not self._is_too_old(self.unsure[key])
        self.sent += 1
        now = Attempted(self.clocks.now(), self.clocks.steadily(), self.process)
        self.latest[key] = now
        self.unsure.setdefault(key, now)
        said: Said = 200
        if not self.kind:
            said = self.dice.choice([200, 400, 401, 429, 429, REFUSED, 500, LOST, LOST])
        if said == 200 or (said in (500, LOST) and self.dice.random() < 0.5):
            taken = self.taken.setdefault(key, [])
            if taken and self.clocks.truly() - taken[-1] < 24 * HOUR:
                said = 409 if said == 200 else said
            else:
                taken.append(self.clocks.truly())
        self._jump()
        return said

    def _answered(self, key: str, said: Said) -> None:
        if self.journal.cut_off or said not in (401, 429, REFUSED):
            return
        if self.unsure[key] is self.latest[key]:
            del self.unsure[key]
            if said == 401:  # written down a moment later
                self.odd.add(key)

    def _is_too_old(self, unsure: Attempted) -> bool:
        age = self.clocks.now() - unsure.wall
        if unsure.process == self.process:
            age = max(age, self.clocks.steadily() - unsure.steady)
        return not 0 <= age <= KNOWN_FOR

    def _note_end(self, row: Row, state: str) -> None:
        key = row.idempotency_key
        assert key not in self.ended
        self.ended[key] = state
        if state in ("accepted", "duplicate"):
            assert self.taken[key]
        if state == "unknown" and key not in self.odd:
            assert key in self.unsure  # and so nobody knows
        if state == "rejected":
            assert not self.taken.get(key)


@pytest.mark.parametrize(
    "lives", [200, pytest.param(1000, marks=pytest.mark.soak, id="soak")]
)
def test_nothing_of_which_nobody_knows_is_sent_after_23_hours(lives: int) -> None:
    """Crashes, lost answers, and clocks that jump to and fro."""
    sent = kills = 0
    ended: list[str] = []
    for seed in range(lives):
        with database(4, contacts=3) as db:
            life = Life(random.Random(seed), db)
            life.live()
        assert len(life.ended) == 4, seed
        if not life.set_back:
            assert all(len(taken) == 1 for taken in life.taken.values()), seed
        sent += life.sent
        kills += life.kills
        ended += life.ended.values()
    # The dice did throw something of everything.
    assert kills > lives
    assert sent > 6 * lives
    for state in ("accepted", "duplicate", "rejected", "unknown"):
        assert ended.count(state) > lives / 10, state


# One rule at a time.


def live(
    db: sqlite3.Connection,
    says: Callable[[str], Said],
    clocks: Clocks | None = None,
    **settings: Any,
) -> Process:
    """Run a process until nothing is pending; return what it saw."""

    async def main() -> Process:
        process = Process(InMemory(db), clocks or Clocks(), says, **settings)
        assert await process.drain.run(until_empty=True) is None
        process.loops.usable = False
        return process

    return virtual.run(main())


def stamped(db: sqlite3.Connection, at: float, attempts: int = 1) -> None:
    db.execute("UPDATE events SET ambiguous_since = ?, attempts = ?", (at, attempts))


def test_a_row_is_stamped_before_its_first_attempt_leaves() -> None:
    with database(1) as db:
        seen = []

        def says(key: str) -> Said:
            seen.append(InMemory(db).look("ambiguous_since"))
            return 200

        live(db, says)
        assert seen == [[1.7e9]]


def test_the_stamp_of_the_first_lost_answer_stays_whatever_comes_after() -> None:
    with database(1) as db:
        seen = []
        said = script(LOST, 429, 500, REFUSED)

        def says(key: str) -> Said:
            seen.extend(InMemory(db).look("ambiguous_since"))
            return said(key)

        process = live(db, says)
        assert seen == [1.7e9] * 5
        assert process.ends == [("k0", "accepted")]
        assert InMemory(db).look("attempts") == [5]


@pytest.mark.parametrize("definite", [429, REFUSED])
def test_a_definite_refusal_takes_back_the_stamp_that_was_made_for_it(
    definite: Said,
) -> None:
    with database(1) as db:
        seen = []
        said = script(definite, definite, LOST, definite)

        def says(key: str) -> Said:
            seen.extend(InMemory(db).look("ambiguous_since"))
            return said(key)

        live(db, says)
        first, second, third, *later = seen
        assert first < second < third
        assert later == [third, third]


def test_what_was_refused_before_a_lost_answer_is_rejected_all_the_same() -> None:
    """A 400 is definite, but it says nothing of the attempt before it."""
    with database(2) as db:
        live(db, lambda key: script(400)(key) if key == "k0" else 200)
        assert InMemory(db).look("state") == ["rejected", "accepted"]
    with database(1) as db:
        live(db, script(LOST, 400))
        assert InMemory(db).look("state") == ["unknown"]
        assert InMemory(db).look("attempts") == [2]


@pytest.mark.parametrize(
    ("age", "state"),
    [
        pytest.param(0.0, "accepted", id="just now"),
        pytest.param(KNOWN_FOR - 1, "accepted", id="almost 23 h"),
        pytest.param(KNOWN_FOR + 1, "unknown", id="more than 23 h"),
        pytest.param(-1.0, "unknown", id="in the future"),
    ],
)
def test_a_stamp_of_an_earlier_process_counts_by_the_wall_clock(
    age: float, state: str
) -> None:
    with database(1) as db:
        stamped(db, 1.7e9 - age)
        process = live(db, script())
        assert process.ends == [("k0", state)]
        assert len(process.asked) == (state == "accepted")
        assert InMemory(db).look("attempts") == [1 + (state == "accepted")]


def test_in_one_process_the_clock_that_cannot_be_set_back_counts_too() -> None:
    with database(1) as db:
        clocks = Clocks()

        def says(key: str) -> Said:
            clocks.steady += 24 * HOUR  # and the wall clock was set back as far
            return LOST

        process = live(db, says, clocks)
        assert process.ends == [("k0", "unknown")]
        (error,) = InMemory(db).look("error")
        assert "24.0 h old" in error
        assert InMemory(db).look("attempts") == [1]  # that was not one


def test_a_wall_clock_set_back_a_little_is_no_reason_to_give_up() -> None:
    with database(1) as db:
        clocks = Clocks()
        said = script(LOST)

        def says(key: str) -> Said:
            clocks.wall -= HOUR
            return said(key)

        assert live(db, says, clocks).ends == [("k0", "accepted")]


def test_a_pause_of_the_sending_does_not_make_the_process_forget() -> None:
    """A refused key for a day, and the wall clock set back meanwhile."""
    with database(1) as db:
        clocks = Clocks()

        async def main() -> Process:
            process = Process(InMemory(db), clocks, script(LOST, 401))
            stopped_by = await process.drain.run()
            assert stopped_by is not None
            assert "401" in str(stopped_by)
            assert process.journal.look("attempts") == [2]
            clocks.pass_by(24 * HOUR)
            clocks.wall -= 20 * HOUR
            assert await process.drain.run(until_empty=True) is None
            process.loops.usable = False
            return process

        process = virtual.run(main())
        assert process.ends == [("k0", "unknown")]
        assert len(process.asked) == 2


def test_what_waits_in_memory_ages_by_the_clock_that_cannot_be_set_back() -> None:
    """A stamp of an earlier process, too, as soon as this one has read it."""
    with database(2, contacts=1) as db:
        stamped(db, 1.7e9 - HOUR)
        clocks = Clocks()

        def says(key: str) -> Said:
            assert key == "k0"
            clocks.pass_by(24 * HOUR)  # for which its contact's next has to wait
            clocks.wall -= 23.5 * HOUR
            return 200

        process = live(db, says, clocks)
        assert process.ends == [("k0", "accepted"), ("k1", "unknown")]


def test_a_409_after_an_attempt_of_another_process_is_no_ones_business() -> None:
    """It confirms what may have been sent, and nothing that was only refused."""
    with database(1) as db:
        stamped(db, 1.7e9 - HOUR)
        assert live(db, script(409)).ends == [("k0", "duplicate")]
    with database(1) as db:
        db.execute("UPDATE events SET attempts = 3")
        assert live(db, script(409)).ends == [("k0", "unknown")]


def test_a_refused_key_stops_the_run_and_ends_nothing() -> None:
    with database(300) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), lambda key: 401)
            process.drain.stop()  # nothing to be stopped yet
            stopped_by = await process.drain.run()
            assert type(stopped_by).__name__ == "AuthenticationError"
            assert process.drain.retrying == 0  # nothing is in memory
            process.loops.usable = False
            return process

        process = virtual.run(main())
        assert set(process.journal.look("state")) == {"pending"}
        assert sum(process.journal.look("attempts")) == len(process.asked)
        assert process.journal.look("ambiguous_since") == [None] * 300
        assert "401" in next(filter(None, process.journal.look("error")))


def test_a_run_can_be_stopped_and_goes_on_where_it_was() -> None:
    with database(500) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(), keep=False)
            process.on_end = lambda row, state: (
                process.drain.stop() if len(process.ends) == 100 else None
            )
            assert isinstance(await process.drain.run(), ClientClosedError)
            await virtual.settle()
            assert 100 <= len(process.asked) < 400
            assert len(process.ends) == len(process.asked)
            assert await process.drain.run(until_empty=True) is None
            process.loops.usable = False
            return process

        process = virtual.run(main())
        assert len(process.asked) == 500
        assert process.journal.look("id") == []


def test_it_waits_for_news_and_tells_what_is_retried() -> None:
    with database(0) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(500, LOST))
            running = asyncio.create_task(process.drain.run())
            await virtual.settle()
            assert process.asked == []
            insert(db, 2)
            process.drain.wake()
            await asyncio.sleep(0.15)
            assert process.drain.retrying == 2
            await asyncio.sleep(100)
            assert process.drain.retrying == 0
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            process.loops.usable = False
            return process

        assert len(virtual.run(main()).ends) == 2


def test_a_full_disk_stops_the_run_before_anything_leaves() -> None:
    with database(3) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script())
            process.journal.full = True
            stopped_by = await process.drain.run()
            assert isinstance(stopped_by, JournalError)
            assert process.asked == []
            process.journal.make_room()
            assert await process.drain.run(until_empty=True) is None
            process.loops.usable = False
            return process

        assert len(virtual.run(main()).ends) == 3


@pytest.mark.parametrize("keep", [True, False])
def test_what_has_ended_is_not_sent_again_while_that_is_not_on_the_disk(
    keep: bool,
) -> None:
    with database(4, contacts=2) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script(), keep=keep)

            def says(key: str) -> Said:
                process.journal.full = True
                return 200

            process.loops.says = says
            assert isinstance(await process.drain.run(), JournalError)
            sent = list(process.asked)
            assert len(sent) in (1, 2)
            assert process.ends == []
            for _ in range(3):
                assert isinstance(await process.drain.run(), JournalError)
            assert process.asked == sent
            process.loops.says = script()
            process.journal.make_room()
            assert len(process.ends) == 0
            await virtual.settle()
            assert len(process.ends) == len(sent)
            assert await process.drain.run(until_empty=True) is None
            process.loops.usable = False
            return process

        process = virtual.run(main())
        assert sorted(key for key, _ in process.asked) == ["k0", "k1", "k2", "k3"]
        assert sorted(key for key, _ in process.ends) == ["k0", "k1", "k2", "k3"]


def test_an_end_that_was_never_written_is_told_to_nobody() -> None:
    with database(1) as db:

        async def main() -> Process:
            process = Process(InMemory(db), Clocks(), script())
            running = asyncio.create_task(process.drain.run())
            await virtual.settle()
            process.journal.full = True
            await asyncio.sleep(1)
            process.journal.give_up()
            await virtual.settle()
            running.cancel()
            await asyncio.wait([running])
            process.loops.usable = False
            return process

        process = virtual.run(main())
        assert process.ends == []
        assert process.asked == [("k0", 200)]
        assert process.journal.look("state") == ["pending"]


def test_a_journal_that_cannot_be_read_stops_the_run() -> None:
    with database(1) as db:

        async def main() -> LoopsError | None:
            process = Process(InMemory(db), Clocks(), script())
            db.execute("ALTER TABLE events RENAME TO gone")
            stopped_by = await process.drain.run()
            process.loops.usable = False
            return stopped_by

        stopped_by = virtual.run(main())
        assert isinstance(stopped_by, JournalError)
        assert "no such table" in str(stopped_by)
