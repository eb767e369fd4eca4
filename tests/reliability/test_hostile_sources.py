"""Rows that name files elsewhere or addresses: nothing outside the data set is read or fetched."""

import io
import json
import os
import sys
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import write_images
from fsspec.registry import _registry
from PIL import Image
from torch.utils.data import DataLoader

from ssl_views import MultiViewCollator, MultiViewDataset, MultiViewIterableDataset, ViewRecipe
from ssl_views.cli import main
from ssl_views.data import image_roots
from ssl_views.data.bad_images import BadImages
from ssl_views.data.decode import BadImage
from ssl_views.data.image_roots import allow_images_below
from ssl_views.data.sources import load_images

RECIPE = ViewRecipe.named("cifar", image_size=16, num_views=2)
SECRET = (255, 0, 255)

_opened, _listening = [], threading.Event()


def _hook(event, arguments):
    if _listening.is_set() and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_hook)  # cannot be removed again; it listens only where a test asks for it


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch):
    """Each test starts without places that others have allowed, and leaves none."""
    monkeypatch.setattr(image_roots, "_allowed", set())
    # datasets sleeps ten seconds after each pass over streamed parquet files.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture
def opened():
    """Paths of all files that Python opens from now on."""
    _opened.clear()
    _listening.set()
    yield _opened
    _listening.clear()


def png(color, side=24):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """A folder of eight good images."""
    write_images(tmp_path / "root", 8)
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path):
    """An image that nobody allowed."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "secret.png"
    path.write_bytes(png(SECRET))
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.writestr("secret.png", png(SECRET))
    return path


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        self.requests = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def _answer(self, body):
        self.server.requests.append((self.command, self.path))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(png(SECRET))))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer(png(SECRET))

    def do_HEAD(self):
        self._answer(b"")

    def log_message(self, *_):
        pass


class _PlainHTTP(fsspec.AbstractFileSystem):
    """HTTP without aiohttp, which is not installed everywhere: a fetch must not fail for that."""

    protocol = ("http", "https")
    cachable = False

    def _open(self, path, mode="rb", **_):
        with urllib.request.urlopen(path, timeout=5) as answer:
            return io.BytesIO(answer.read())

    def cat_file(self, path, start=None, end=None, **_):
        return self._open(path).read()[start:end]

    def info(self, path, **_):
        with urllib.request.urlopen(
            urllib.request.Request(path, method="HEAD"), timeout=5
        ) as answer:
            return {"name": path, "type": "file", "size": int(answer.headers["Content-Length"])}

    @classmethod
    def _strip_protocol(cls, path):
        return path


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that notes every request; fsspec can reach it."""
    monkeypatch.setitem(_registry, "http", _PlainHTTP)
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def parquet(path, values, described=True):
    """Write rows that hold {"bytes", "path"}, with or without the description of `datasets`."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(values, kind)})
    if described:
        schema = datasets.Features({"image": datasets.Image()}).arrow_schema
        table = table.replace_schema_metadata(schema.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def good_rows(count=8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (count, 24, 24, 3), dtype=np.uint8)
    rows = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return rows


def hostile_paths(outside, server):
    """Return names of what lies outside: absolute, relative, as an address, in an archive."""
    url, archive = server.url, outside.with_suffix(".zip")
    return {
        "absolute": str(outside),
        "through the root": str(outside.parents[1] / "data" / ".." / "outside" / "secret.png"),
        "relative": "../outside/secret.png",
        "file address": f"file://{outside}",
        "local address": f"local://{outside}",
        "in an archive": f"zip://secret.png::{archive}",
        "in an archive, file address": f"zip://secret.png::file://{archive}",
        "http": f"{url}/x.png",
        "http, another case": f"HTTP://{url[7:]}/x.png",
        "http with a question": f"{url}/x.png?a=1#b",
        "http through a cache": f"simplecache::{url}/x.png",
        "http through a file cache": f"filecache::{url}/x.png",
        "http in an archive": f"zip://secret.png::{url}/x.zip",
        "leading blank": f" {outside}",
        "address with a blank": f" {url}/x.png",
        "home": "~/../../../../" + str(outside),
        "device": "/dev/zero",
        "nothing": "",
        "zero byte": f"{outside}\0.png",
        "Hub": "hf://datasets/someone/something/x.png",
        "memory": "memory://x.png",
        "link file": f"reference://{url}",
    }


def finished(rows, bad):
    """Make all batches of some rows, bad ones replaced, and return the views."""
    dataset = MultiViewDataset(rows, epoch=0)
    collator = MultiViewCollator(RECIPE, seed=0, bad_images=bad)
    return [batch["pixel_values"] for batch in DataLoader(dataset, 10, collate_fn=collator)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def nothing_read(opened, outside):
    return not any(path.startswith((str(outside.parent), "/dev/zero")) for path in opened)


class TestParquet:
    @pytest.mark.parametrize("described", [True, False])
    def test_rows_that_name_something_outside_are_bad_images(
        self, tmp_path, outside, server, opened, monkeypatch, described
    ):
        paths = hostile_paths(outside, server)
        values = [{"bytes": None, "path": path} for path in paths.values()]
        source = parquet(tmp_path / "data" / "x.parquet", values + good_rows(40), described)
        monkeypatch.chdir(tmp_path / "data")
        rows = load_images(source)
        opened.clear()
        bad = BadImages(tmp_path / "bad.jsonl")
        finished(rows, bad)
        listed = lines(tmp_path / "bad.jsonl")
        assert sorted(line["index"] for line in listed) == list(range(len(paths)))
        assert {line["path"] for line in listed} == set(paths.values())
        assert all(line["reason"] for line in listed)
        assert nothing_read(opened, outside)
        assert server.requests == []

    def test_by_default_the_first_is_an_error_that_names_it(self, tmp_path, outside):
        source = parquet(tmp_path / "data" / "x.parquet", [{"bytes": None, "path": str(outside)}])
        with pytest.raises(BadImage, match=r"image 0 .*secret\.png.*below the folder"):
            finished(load_images(source), None)

    def test_a_path_beside_bytes_is_only_a_name(self, tmp_path, outside, server, opened):
        values = [
            {"bytes": row["bytes"], "path": path}
            for row in good_rows()
            for path in (str(outside), f"{server.url}/x.png")
        ]
        rows = load_images(parquet(tmp_path / "data" / "x.parquet", values))
        bad = BadImages()
        finished(rows, bad)
        assert len(bad) == 0
        assert nothing_read(opened, outside)
        assert server.requests == []

    def test_what_was_allowed_is_read(self, tmp_path, outside, opened):
        source = parquet(tmp_path / "data" / "x.parquet", [{"bytes": None, "path": str(outside)}])
        allow_images_below(outside.parent)
        opened.clear()
        finished(load_images(source), None)
        assert not nothing_read(opened, outside)  # so that the tests above can fail

    def test_streamed(self, tmp_path, outside, server, opened, monkeypatch):
        for number, path in enumerate(hostile_paths(outside, server).values()):
            values = [*good_rows(3), {"bytes": None, "path": path}, *good_rows(3)]
            source = parquet(tmp_path / "data" / f"{number}.parquet", values)
            monkeypatch.chdir(tmp_path / "data")
            bad = BadImages()
            rows = MultiViewIterableDataset(load_images(source, streaming=True))
            collator = MultiViewCollator(RECIPE, seed=0, bad_images=bad)
            batches = iter(DataLoader(rows, 7, collate_fn=collator))
            next(batches)
            assert len(bad) == 1, path
        assert nothing_read(opened, outside)
        assert server.requests == []


class TestRemote:
    def source(self, tmp_path, server):
        values = [*good_rows(3), {"bytes": None, "path": f"{server.url}/x.png"}]
        return parquet(tmp_path / "data" / "x.parquet", values)

    def test_fetched_where_it_is_allowed(self, tmp_path, server):
        rows = load_images(self.source(tmp_path, server), allow_remote_images=True)
        finished(rows, None)
        assert ("GET", "/x.png") in server.requests

    def test_streamed_where_it_is_allowed(self, tmp_path, server):
        source = self.source(tmp_path, server)
        rows = load_images(source, streaming=True, allow_remote_images=True)
        collator = MultiViewCollator(RECIPE, seed=0)
        next(iter(DataLoader(MultiViewIterableDataset(rows), 4, collate_fn=collator)))
        assert ("GET", "/x.png") in server.requests

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_command_fetches_nothing(self, capsys, tmp_path, server, outside, opened, streaming):
        values = [{"bytes": None, "path": f"{server.url}/x.png"}]
        values += [{"bytes": None, "path": str(outside)}, *good_rows(40)]
        source = parquet(tmp_path / "data" / "x.parquet", values)
        words = ["pretrain", "--dataset", source, "--backbone", "test_resnet", "--max_steps", "3"]
        words += ["--per_device_train_batch_size", "16", "--num_views", "2"]
        words += ["--save_strategy", "no", "--output_dir", str(tmp_path / "run")]
        assert main(words + (["--streaming"] if streaming else [])) == 0, capsys.readouterr().err
        assert server.requests == []
        assert nothing_read(opened, outside)


class TestFolder:
    def test_a_link_that_leads_out_is_a_bad_image(self, tmp_path, root, outside, opened):
        (root / "link.png").symlink_to(outside)
        (root / "inside.png").symlink_to(root / "good_000.png")
        bad = BadImages(tmp_path / "bad.jsonl")
        finished(load_images(str(root)), bad)
        (line,) = lines(tmp_path / "bad.jsonl")
        assert line["path"].endswith("link.png")
        assert "below the folder" in line["reason"]
        assert nothing_read(opened, outside)

    def test_a_linked_folder_that_leads_out_is_not_read(self, tmp_path, root, outside, opened):
        (root / "more").symlink_to(outside.parent, target_is_directory=True)
        bad = BadImages(tmp_path / "bad.jsonl")
        finished(load_images(str(root)), bad)
        assert nothing_read(opened, outside)

    def test_a_root_that_is_a_link_itself_is_read(self, tmp_path, root):
        (tmp_path / "linked").symlink_to(root, target_is_directory=True)
        rows = load_images(str(tmp_path / "linked"))
        finished(rows, None)
        assert len(rows) == 8

    def test_a_folder_whose_name_only_begins_alike_is_outside(self, tmp_path, root):
        write_images(tmp_path / "root_of_another", 1)
        load_images(str(root))
        other = tmp_path / "root_of_another" / "good_000.png"
        source = parquet(tmp_path / "data" / "x.parquet", [{"bytes": None, "path": str(other)}])
        with pytest.raises(BadImage, match="below the folder"):
            finished(load_images(source), None)

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_metadata_that_leads_out(self, tmp_path, root, outside, opened, kind, streaming):
        names = ["good_000.png", "../outside/secret.png", str(outside)]
        for name in names[1:]:
            text = f"file_name\ngood_000.png\n{name}\n"
            if kind == "jsonl":
                text = "".join(json.dumps({"file_name": n}) + "\n" for n in (names[0], name))
            (root / f"metadata.{kind}").write_text(text)
            try:
                rows = load_images(str(root), streaming=streaming)
                if streaming:
                    collator = MultiViewCollator(RECIPE, seed=0, bad_images=BadImages())
                    loader = DataLoader(MultiViewIterableDataset(rows), 8, collate_fn=collator)
                    next(iter(loader))
                else:
                    finished(rows, BadImages())
            except ValueError as error:
                assert "secret" in str(error)  # noqa: PT017 (either is right)
            assert nothing_read(opened, outside)


def test_a_data_set_on_disk_that_names_something_outside(tmp_path, outside, server, opened):
    features = datasets.Features({"image": datasets.Image(decode=False)})
    paths = list(hostile_paths(outside, server).values())
    values = [{"bytes": None, "path": path} for path in paths] + good_rows(40)
    rows = datasets.Dataset.from_dict({"image": values}, features=features)
    # As somebody else may send it: `save_to_disk` itself would read the files.
    folder = tmp_path / "saved"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, rows.data.table.schema) as writer,
    ):
        writer.write_table(rows.data.table)
    state = {
        "_data_files": [{"filename": "data.arrow"}],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state))
    rows.info.write_to_directory(str(folder))
    opened.clear()
    bad = BadImages(tmp_path / "bad.jsonl")
    finished(load_images(str(folder)), bad)
    assert {line["path"] for line in lines(tmp_path / "bad.jsonl")} == set(paths)
    assert nothing_read(opened, outside)
    assert server.requests == []


def test_the_pixels_of_an_image_outside_never_come_out(tmp_path, outside):
    """By content: all good images are dark, so that a bright view could only be the secret."""
    dark = [{"bytes": png((10, 10, 10)), "path": None} for _ in range(20)]
    values = [{"bytes": None, "path": str(outside)}, *dark]
    rows = load_images(parquet(tmp_path / "data" / "x.parquet", values))
    plain = ViewRecipe.named("cifar", image_size=16, num_views=2)
    dataset = MultiViewDataset(rows, epoch=0)
    collator = MultiViewCollator(plain, seed=0, bad_images=BadImages())
    views = next(iter(DataLoader(dataset, 21, collate_fn=collator)))["pixel_values"]
    darkest = MultiViewCollator(plain, seed=0)(
        [{"image": png((10, 10, 10)), "index": i, "epoch": 0} for i in range(21)]
    )["pixel_values"]
    assert float(views.amax()) <= float(darkest.amax()) + 1e-3
