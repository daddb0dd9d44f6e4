"""What the API says, as pure functions: bytes in, judged rows and answers out. No I/O, no clock.

    requests    bytes of a body -> token and raw rows; raises what is wrong with the request as a whole
      outline     where a body's values lie, for bodies that a JSON decoder refuses
      surrogates  the same bodies without lone surrogates
    rows        raw rows -> canonical rows with their facts, or the reason why not; each alone
      typical     common rows, judged while they are decoded
      careful     every row, judged field by field: what is decided here is what holds
      reading     a row's text -> values, whatever it holds
      freeform    free-form objects, normalised
      faults      what is wrong with a row, in words
    answers     what became of the rows -> status and bytes of the answer
    rejections  what is wrong with a request as a whole
    unavailability
                why nothing of a request is confirmed
    openapi     all of this as a document

    fields      the fields of a row, and the tables (fields.json): the one place where a field is written
    limits      what a request and a row may be at most
    facts       what settle needs to know of a row
    subject     whose rows are meant, where a person's rows are looked for
    text        strings and numbers as JavaScript sees them

A canonical row is a JSON object on one line, in valid UTF-8, with these keys in this order, each absent when absent or
null: `event, distinctId, userId, externalId, email, time, eventProperties, userProperties, defaultProperties,
identityContext, extra`. `time` is an integer (ms); `extra` an object of the fields that the contract does not know, in
the sender's order. It holds what the sender said and nothing of the server's, with one exception: a distinctId that the
server made stands in it, and the content hash is made without it.

Invariants:
    C1. A row is judged by its own bytes, the rules and the time alone: what is accepted alone is accepted in any batch,
        at any place, with the same canonical bytes.
    C2. A canonical row, its `extra` put back among its fields, judged again gives the same bytes.
    C3. No message holds a value of a row, nor a name that the contract doesn't know.
    C4. `typical` takes no row that `careful` would not, and makes the same bytes of it.
"""
