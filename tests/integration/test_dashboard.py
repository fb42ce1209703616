"""The dashboard asks for series that the server has."""

import json
import re
from pathlib import Path

import httpx

from lightvl.testing.server import ENGINE, ServerProcess

DASHBOARD = Path(__file__).parents[2] / "examples/grafana/dashboard.json"
NAME = re.compile(r"lightvl:[a-z_0-9]+")


def test_every_series_of_the_dashboard_exists() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = {name for p in panels for t in p["targets"] for name in NAME.findall(t["expr"])}
    assert len(wanted) > 20
    with ServerProcess(engine=ENGINE) as server:
        httpx.post(server.url + "/generate", json={"inputs": "a"}, timeout=60)
        httpx.post(server.url + "/generate", content=b"{")
        text = httpx.get(server.url + "/metrics").text
    served = {line.partition(" ")[0].partition("{")[0] for line in text.splitlines()}
    assert wanted - served == set()
