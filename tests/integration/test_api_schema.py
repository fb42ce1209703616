"""Requests made from the server's own OpenAPI document: none ends in an error of the server."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from lightvl.testing.server import ServerProcess

EXAMPLES = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def try_operation(operation: Any) -> None:
    @EXAMPLES
    @given(operation.as_strategy())
    def try_case(case: Any) -> None:
        response = case.call(timeout=30)
        case.validate_response(response, checks=[not_a_server_error])
        assert response.status_code != 422

    try_case()


def test_no_request_of_the_document_breaks_the_server() -> None:
    with ServerProcess("--model_name", "m", "--media_workers", "1") as server:
        document = schemathesis.openapi.from_url(server.url + "/openapi.json")
        operations: list[Any] = [found.ok() for found in document.get_all_operations()]  # type: ignore[union-attr]
        tried = {operation.path for operation in operations if operation.path != "/drain"}
        assert len(tried) > 12
        for operation in operations:
            if operation.path in tried:
                try_operation(operation)
        assert "failed inside" not in server.log
