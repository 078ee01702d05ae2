"""JSON text, by orjson where it is installed, else by the standard library.

Both write compact UTF-8 and read only what RFC 8259 allows.
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
        msg = f"{digits[:20]} is out of range"
        raise ValueError(msg)
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def strict_dumps(value: object) -> bytes:
    """Write JSON, refusing NaN, infinities and foreign types.

    Raises:
        ValueError: if it cannot be written.
        TypeError: if it cannot be written.
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
"""Write JSON; only for values known to be finite: orjson writes NaN as null."""

loads: Callable[[bytes], Any]
"""Read JSON.

Raises:
    ValueError: if it is not JSON.
"""

try:
    import orjson
except ImportError:
    dumps, loads = strict_dumps, _strict_loads
else:
    dumps, loads = orjson.dumps, orjson.loads
