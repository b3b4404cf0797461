"""moto's server with writes that are atomic, as S3's are: run by moto's own Python with the server's arguments.

moto looks whether an object exists and writes it in two steps, in as many threads as there are requests, so that of
eight create-only writes at one moment two may succeed.
"""

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_one_at_a_time = threading.Lock()
_put_object = S3Response.put_object


def put_object(self: Any) -> Any:
    """The same, its body having been received, with no other write between question and answer."""
    with _one_at_a_time:
        return _put_object(self)


S3Response.put_object = put_object
main()
