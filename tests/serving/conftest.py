"""A world that is served, and clients of it."""

import pytest
from served_world import build_world, fake_load_model, open_world
from starlette.testclient import TestClient

from crops.serving import service as service_module
from crops.serving.app import make_app


@pytest.fixture(scope="session")
def world(tmp_path_factory, write_logs):
    """The folder of the world; tests leave it as it is."""
    return build_world(tmp_path_factory.mktemp("world"), write_logs)


@pytest.fixture
def fake_models(monkeypatch):
    """Models are loaded from a table."""
    monkeypatch.setattr(service_module, "load_model", fake_load_model)


@pytest.fixture(scope="session")
def service(world):
    """All that is known of the world; tests leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "load_model", fake_load_model)
        return open_world(world)


@pytest.fixture(scope="session")
def client(service):
    """A client of the application, as strangers see it."""
    with TestClient(make_app(service), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def own_service(world, fake_models):
    """The same, for a test that changes or stops it."""
    return open_world(world)
