"""Requests made from the server's own description: whatever they are, it keeps its countenance."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from hyprstream.server.app import ROUTES

LIMITS = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(served):
    headers = {"Authorization": f"Bearer {served.keys['all']}"}
    with served.client() as client:
        return schemathesis.openapi.from_dict(client.get("/openapi.json").json()), headers


def try_out(operation, served, headers) -> int:
    """Send what the description of an operation admits; return how often."""
    num_tried = 0

    @LIMITS
    @given(case=operation.as_strategy())
    def run(case):
        nonlocal num_tried
        sent = case.as_transport_kwargs(base_url=served.server.url, headers=headers)
        with (
            served.client() as client,
            client.stream(
                sent["method"], sent["url"], params=sent.get("params"),
                headers=sent["headers"], json=sent.get("json"), content=sent.get("data"),
            ) as answer,
        ):  # fmt: skip
            if operation.path != "/v1/events":  # they do not end
                answer.read()
            assert answer.status_code < 500, (operation.label, answer.text)
        num_tried += 1

    run()
    return num_tried


@pytest.mark.timeout(170)
def test_no_request_that_the_description_admits_is_a_failure_of_the_server(schema, served):
    description, headers = schema
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) == len(ROUTES)
    assert sum(try_out(operation, served, headers) for operation in operations) > 100
    assert "Traceback" not in served.server.log
