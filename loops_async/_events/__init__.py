"""Events: the value itself, the rules of the API, and the encoding.

- `event`: the Event, checked when it is made.
- `rules`: which names, identifiers, keys and property values are valid.
- `codec`: events to the JSON body that Loops receives, and to and from records.
- `allow_list`: the recipients that a client may send to.
"""
