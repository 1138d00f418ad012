"""Sends an answer again whose client is not connected at the moment: its gateway starts again.

A ROUTER socket drops what is for nobody, and a client that is cut off while its cell ends would
wait for ever for the answer.
"""

import logging
from typing import Any, Final

import zmq
from zmq.eventloop.zmqstream import ZMQStream

__all__ = ["retry_replies"]

_EVERY_S: Final = 0.2
_FOR_S: Final = 60.0
"""As long as output waits (`iopub_hold`)."""
_MAX_WAITING: Final = 1000


def retry_replies(stream: ZMQStream) -> None:
    """Have a stream of a ROUTER socket try again for a minute where a client is not there.

    Args:
        stream: The shell channel's; its answers are sent in its loop's thread.
    """
    stream.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    tries: dict[int, tuple[Any, int]] = {}

    def sent(msg: Any, status: Any) -> None:
        number = tries.pop(id(msg), (msg, 0))[1]
        unreachable = isinstance(status, zmq.ZMQError) and status.errno == zmq.EHOSTUNREACH
        if unreachable and number * _EVERY_S < _FOR_S and len(tries) < _MAX_WAITING:
            tries[id(msg)] = (msg, number + 1)
            stream.io_loop.call_later(_EVERY_S, again, msg)

    def again(msg: Any) -> None:
        if not stream.closed():
            stream.send_multipart(msg)

    stream.on_send(sent)
    # pyzmq says each of these tries in the notebook's log.
    logging.getLogger("tornado.general").addFilter(_is_no_try)


def _is_no_try(record: logging.LogRecord) -> bool:
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(
        isinstance(one, zmq.ZMQError) and one.errno == zmq.EHOSTUNREACH for one in arguments
    )
