"""The memory of idempotency keys."""

from loops_async.sandbox._keys import REMEMBERED, Keys


def test_keys_past_their_time_are_forgotten() -> None:
    keys = Keys()
    keys.burn("old", 0.0)
    keys.burn("new", 10.0)
    keys.burn("newer", REMEMBERED)
    assert len(keys._used) == 2
    assert [keys.used(key, REMEMBERED) for key in ("old", "new", "newer")] == [
        False,
        True,
        True,
    ]


def test_a_key_burned_again_is_remembered_from_then_on() -> None:
    keys = Keys()
    keys.burn("a", 0.0)
    keys.burn("b", 1.0)
    keys.burn("a", 2.0)
    assert keys.used("a", REMEMBERED + 1)
    assert not keys.used("b", REMEMBERED + 1)
