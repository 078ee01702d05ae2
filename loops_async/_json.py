"""JSON with orjson if it is installed, otherwise with the standard library.

Both encoders write compact UTF-8, and both decoders accept only what RFC 8259 allows.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final, Never


def _refuse_constant(name: str) -> Never:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        msg = f"the number {digits[:20]} is out of range"
        raise ValueError(msg)
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def strict_dumps(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        ValueError: If the value contains NaN, an infinity, a lone surrogate or itself.
        TypeError: If the value contains a type that JSON does not have.
    """
    return _ENCODER.encode(value).encode()


def _strict_loads(text: bytes) -> Any:
    try:
        value = _DECODER.decode(text.decode())
        if b"\\u" in text:
            strict_dumps(value)  # raises for a lone surrogate
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None
    return value


dumps: Callable[[object], bytes]
"""Return a value without NaN or infinities, which orjson writes as null, as JSON."""

loads: Callable[[bytes], Any]
"""Return the value of a JSON text.

Raises:
    ValueError: If the text is not JSON.
"""

try:
    import orjson
except ImportError:
    dumps, loads = strict_dumps, _strict_loads
else:
    dumps, loads = orjson.dumps, orjson.loads
