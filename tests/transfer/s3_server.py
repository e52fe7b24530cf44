"""moto's S3 server on loopback, as a process: `python -m tests.transfer.s3_server --log FILE` prints its address.

In front of it stands a gate that notes each request, and can be told to answer slowly or to refuse the checksum headers
that newer clients send, as some stores do. The hub's stand-in has the same gate.
"""

from __future__ import annotations

import argparse
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

NEWER_HEADERS = ("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_SDK_CHECKSUM", "HTTP_X_AMZ_TRAILER")


class Silent(WSGIRequestHandler):
    """HTTP/1.1, so that connections are kept, and nothing on stderr."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass


class Gate:
    """A WSGI application in front of another."""

    def __init__(self, inner: Any, asked: argparse.Namespace) -> None:
        self._inner, self._asked, self._lock = inner, asked, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._asked.log:
            with self._lock, open(self._asked.log, "a", encoding="utf-8") as file:
                file.write(json.dumps({key: environ[key] for key in ("REQUEST_METHOD", "PATH_INFO")}) + "\n")
        if self._asked.refuse_checksums and any(key.startswith(NEWER_HEADERS) for key in environ):
            start_response("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code></Error>"]
        time.sleep(self._asked.seconds)
        found: Iterable[bytes] = self._inner(environ, start_response)
        return found


def serve(application: Callable[[argparse.Namespace], Any]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", default="")
    parser.add_argument("--seconds", type=float, default=0.0, help="that each answer waits")
    parser.add_argument("--refuse-checksums", action="store_true")
    parser.add_argument("--redirect", default="", help="where the hub's stand-in sends whoever asks for a file")
    parser.add_argument("--certificate", default="", help="PEM file with certificate and key: serve TLS")
    asked = parser.parse_args()
    context = None
    if asked.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(asked.certificate)
    gate = Gate(application(asked), asked)
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Silent, ssl_context=context)
    print(f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    serve(lambda _: DomainDispatcherApplication(create_backend_app))
