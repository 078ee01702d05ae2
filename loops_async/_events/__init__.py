"""Events: the value itself, the rules of the API, and the encoding.

- `event`: the Event, checked when it is made.
- `rules`: what a name, an identifier, a key and a property value may be.
- `codec`: events to the JSON body that Loops receives, and to and from records.
- `allow_list`: the recipients that a client may send to.
"""
