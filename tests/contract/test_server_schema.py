"""schemathesis against the server's own description: no 5xx, no answer that the description does not allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import SecretStr

from serving import models_file
from tunesmith.server.app import create_app
from tunesmith.server.settings import Settings

schemathesis = pytest.importorskip("schemathesis")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")
BEYOND = [openapi_checks.positive_data_acceptance]
"""A description cannot say which files exist, nor that two fields belong together: such requests are refused."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> Any:
    """The description of all routes but the pages; a server without workers answers."""
    folder = tmp_path_factory.mktemp("schema")
    settings = Settings(
        data=folder / "data", models=models_file(folder, tiny_decoder), workers=0, allowed_hosts=("testserver",),
        token=SecretStr("secret"), max_failures=10**9,
    )  # fmt: skip
    app = create_app(settings)
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    return described.include(path_regex="^/(v1/|health)")


def test_the_description_holds(api: Any) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) >= 20
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)
        def holds(case: Any) -> None:
            bearer = {"Authorization": "Bearer secret"}
            case.call_and_validate(headers=bearer, excluded_checks=BEYOND, timeout=300)  # imports take their time

        holds()
