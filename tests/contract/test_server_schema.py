"""schemathesis against the server's own description: no 5xx, no answer that the description does not allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from serving import models_file
from tunesmith.server.app import create_app
from tunesmith.server.settings import Settings

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> object:
    """The description of the routes that keep things; a server without workers answers."""
    folder = tmp_path_factory.mktemp("schema")
    models, hosts = models_file(folder, tiny_decoder), ("testserver",)
    app = create_app(Settings(data=folder / "data", models=models, workers=0, allowed_hosts=hosts))
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    return described.include(path_regex="^/(v1/(files|uploads|fine_tuning)|health)")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_description_holds(case: object) -> None:
    case.call_and_validate()  # type: ignore[attr-defined]
