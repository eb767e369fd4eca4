"""A Hub for the tests of publishing, and a small encoder to publish."""

import huggingface_hub.hf_api
import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from ssl_views import SSLViewsConfig, SSLViewsModel, export_encoder


@pytest.fixture(scope="session")
def _no_proxy():
    """The HTTP client of the library is made once; it takes long."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        close_session()
        yield
        close_session()


@pytest.fixture
def hub(monkeypatch, tmp_path, _no_proxy):
    """A stand-in that this process takes for the Hub, with its user logged in."""
    with HubStandIn() as stand_in:
        home = tmp_path / "hf-home"
        patched = {
            "ENDPOINT": stand_in.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": stand_in.url
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        }
        for name, value in patched.items():
            monkeypatch.setattr(constants, name, value)
        # The functions of the library's top level belong to an object made at import.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", stand_in.url)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.setenv(name, stand_in.environment(home)[name])
        yield stand_in


@pytest.fixture(scope="session")
def small_model():
    return SSLViewsModel(SSLViewsConfig(backbone="test_resnet", image_size=32)).eval()


@pytest.fixture(scope="session")
def small_encoder(small_model, tmp_path_factory):
    """An encoder folder; copy it before changing it."""
    return export_encoder(small_model, tmp_path_factory.mktemp("small") / "encoder")
