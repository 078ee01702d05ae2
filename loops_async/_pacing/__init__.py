"""When a request may leave: limits, outages, pauses.

- `rate_limiter`: the permits, and when they return.
- `adaptive`: what the limiter learns from responses: the credit and the capacity.
- `shared`: the limiter that the clients of one process share.
- `circuit_breaker`: no requests while Loops is down, except for probes.
- `concurrency`: how many requests may be in flight.
- `retry_policy`: how often, and after which pauses, a request is repeated.
"""
