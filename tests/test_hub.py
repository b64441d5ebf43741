"""What has to be fetched from the hub, asked of a server that answers like it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import run_config
from huggingface_hub import constants

from iris_ray.errors import ConfigError
from iris_ray.hub import Download, data_download, model_download

FILES = [{"rfilename": "config.json", "size": 700}, {"rfilename": "weights.safetensors", "size": 3_000}]


class Hub(BaseHTTPRequestHandler):
    """Knows a model `some/model` and a data set `some/data`."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = path in ("/api/models/some/model", "/api/datasets/some/data")
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(json.dumps({"id": "some", "siblings": FILES} if known else {}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("hub")
def test_sizes_are_the_hubs() -> None:
    config = run_config(model={"path": "some/model"}, data={"path": "some/data"})
    assert model_download(config) == Download("model", "some/model", 3_700)
    assert data_download(config) == Download("dataset", "some/data", 3_700)


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_refused() -> None:
    config = run_config(model={"path": "some/mistake"}, data={"path": "some/mistake"})
    with pytest.raises(ConfigError, match=r"model\.path=some/mistake: .* no model of that name on the hub"):
        model_download(config)
    with pytest.raises(ConfigError, match=r"model\.path=no/such/folder: there is no such folder here"):
        model_download(run_config(model={"path": "no/such/folder"}))
    with pytest.raises(ConfigError, match=r"data\.path=some/mistake: .* no dataset of that name on the hub"):
        data_download(config)


def test_what_is_here_is_not_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "rows.jsonl").write_text("{}")
    config = run_config(model={"path": str(tmp_path)}, data={"path": str(tmp_path / "rows.jsonl")})
    assert model_download(config) is data_download(config) is None
    made = run_config(model={"scratch": {}}, data={"sort_digits": {}})
    assert model_download(made) is data_download(made) is None
