"""The HTTP of Loops: addresses, requests, responses, connections.

- `request`: what a caller may ask for, and how it is encoded.
- `protocol`: what a response means, and which errors would affect every event.
- `redaction`: API keys and personal data in server-supplied text.
- `api_key`: the API key, and how it stays hidden.
- `address`: the addresses of Loops and of the proxy, and the connection settings.
- `transport`: the connections themselves; the only module that knows aiohttp's client.
"""
