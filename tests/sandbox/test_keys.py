"""Idempotency keys and their lifetime."""

from loops_async.sandbox._keys import KEY_LIFETIME, IdempotencyKeys


def test_an_expired_key_is_dropped() -> None:
    keys = IdempotencyKeys()
    keys.mark_used("old", 0.0)
    keys.mark_used("new", 10.0)
    keys.mark_used("newer", KEY_LIFETIME)
    assert len(keys) == 2
    assert [keys.is_used(key, KEY_LIFETIME) for key in ("old", "new", "newer")] == [
        False,
        True,
        True,
    ]


def test_a_key_used_again_expires_24_hours_after_its_last_use() -> None:
    keys = IdempotencyKeys()
    keys.mark_used("a", 0.0)
    keys.mark_used("b", 1.0)
    keys.mark_used("a", 2.0)
    assert keys.is_used("a", KEY_LIFETIME + 1)
    assert not keys.is_used("b", KEY_LIFETIME + 1)
