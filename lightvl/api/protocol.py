"""HTTP/1.1 as uvicorn speaks it, with our shape of error for what is no HTTP at all."""

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightvl.errors import RequestError


class HttpProtocol(HttpToolsProtocol):
    """Answers malformed requests with JSON."""

    def send_400_response(self, msg: str) -> None:
        """Answers 400 and closes the connection."""
        error = RequestError("this is no valid HTTP request", code="invalid_http")
        body = msgspec.json.encode(error.body())
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
