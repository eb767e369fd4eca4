"""Every call of a publication, broken in every way: nothing half published is ever under a tag."""

import re
import time
import traceback

import pytest
from huggingface_hub import HfApi

import ssl_views.hub
from ssl_views.cli import main
from ssl_views.hub import PublishError, publish_encoder

REPO = "tester/encoder"

# The calls of a publication in order, and what is true of the repository if one fails for good.
NOTHING = "Nothing was published"
CALLS = {
    "login": ("GET /api/whoami-v2", NOTHING),
    "look": ("GET /api/models/tester/encoder$", NOTHING),
    "refs": ("GET .*/refs", NOTHING),
    "hashes": ("POST .*/paths-info/{old}", NOTHING),
    "names": ("GET .*/revision/{old}", NOTHING),
    "preupload": ("POST .*/preupload/", NOTHING),
    "lfs batch": ("POST .*/objects/batch", NOTHING),
    "lfs upload": ("PUT /lfs-storage/", NOTHING),
    "lfs verify": ("POST .*/lfs/verify", NOTHING),
    "card": ("POST /api/validate-yaml", NOTHING),
    "commit": ("POST .*/commit/", NOTHING),
    "verification": ("POST .*/paths-info/(?!{old})", "is there, but not verified and not tagged"),
    "tag": ("POST .*/tag/", "is there and verified, but has no tag"),
    "tag check": ("GET .*/revision/v1", "is there and verified; the tag v1 is not"),
}
RETRIED_BY_THE_LIBRARY = ("preupload", "lfs batch", "lfs upload", "lfs verify", "card")
LASTING = {401: "hf auth login", 403: "right to write", 404: "Check the name", 409: "Look at"}
PASSING = {
    429: "answered 429",
    500: "answered 500",
    "reset": "(reset by peer|disconnected|closed)",
    "slow": "no answer within 0.2 s",
    "cut": "",
}
HOPELESS = {
    ("look", 404): "that is how the Hub says that there is no such repository",
    **{("lfs verify", how): "the next attempt finds the file uploaded" for how in PASSING},
}


def breaks(*hows):
    """Every call with every way to break it; only a body can be cut."""
    return [
        pytest.param(name, how, id=f"{name}-{how}")
        for name, (pattern, _) in CALLS.items()
        for how in hows
        if how != "cut" or not pattern.startswith("GET")
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that pass for an encoder, so that only the network is tested."""
    monkeypatch.setattr(ssl_views.hub, "check_encoder", lambda folder: None)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# An encoder\n")
    return folder


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been slept, by us and by huggingface_hub."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def old(hub):
    """An earlier publication; all of its files differ from what is published now."""
    files = {
        "config.json": b"{}",
        "model.safetensors": b"old",
        "README.md": b"#",
        "model.onnx": b"",
    }
    return hub.add_repository(REPO, files)


def publish(folder, **options):
    return publish_encoder(folder, REPO, **{"tag": "v1", "retries": 1, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count(hub, pattern):
    return sum(re.search(pattern, f"{method} {path}") is not None for method, path in hub.requests)


@pytest.mark.parametrize(
    ("name", "how"), [p for p in breaks(*LASTING, *PASSING) if p.values not in HOPELESS]
)
def test_a_call_that_fails_for_good(hub, old, folder, waits, name, how):
    pattern, state = CALLS[name][0].format(old=old), CALLS[name][1]
    hub.fail(pattern, how)
    reason = {**LASTING, **PASSING}[how]
    if (name, how) == ("card", 500):
        reason = "the answer is not JSON"  # the library reads it before the status
    limits = {"timeout_seconds": 0.2, "retries": 0} if how == "slow" else {}
    with pytest.raises(PublishError, match=r"^could not ") as failure:
        publish(folder, **limits)
    message = str(failure.value)
    assert re.search(reason, message)
    assert state in message
    assert hub.token not in message
    if how in LASTING:
        assert count(hub, pattern) == 1
        assert waits == []
    elif how != "slow":
        assert "(2 times)" in message
        assert name in RETRIED_BY_THE_LIBRARY or waits == [1]
    # What is left behind: the old files or the new ones, and a tag on nothing but the new ones.
    new, before = contents(folder), hub.files(REPO, old)
    assert hub.files(REPO) == (before if state == NOTHING else new)
    tags = hub.repositories[REPO].tags
    assert tags == ({"v1": hub.head(REPO)} if name == "tag check" else {})
    # And repeating the command repairs it.
    hub.heal()
    published = publish(folder)
    assert hub.files(REPO, "v1") == hub.files(REPO, published.commit) == new
    assert len(hub.repositories[REPO].commits) == 3
    assert hub.unknown == []


@pytest.mark.parametrize(("name", "how"), breaks(*PASSING, "lost"))
def test_a_call_that_fails_once(hub, old, folder, waits, name, how):
    hub.fail(CALLS[name][0].format(old=old), how, times=1)
    published = publish(folder, timeout_seconds=0.3 if how == "slow" else 10)
    assert hub.files(REPO) == hub.files(REPO, "v1") == contents(folder)
    assert hub.repositories[REPO].tags == {"v1": published.commit}
    assert len(hub.repositories[REPO].commits) == 3
    assert hub.unknown == []
    assert waits or how == "lost"


@pytest.mark.parametrize("how", [500, "reset", "slow", "cut", "lost", 429, 403, 401])
def test_making_a_repository(hub, folder, waits, how):
    hub.fail("POST /api/repos/create", how, times=None if how in (401, 403) else 1)
    if how in (401, 403):
        with pytest.raises(PublishError, match=f"could not create {REPO}.*{how}.*{NOTHING}"):
            publish(folder)
        assert hub.repositories == {}
        return
    publish(folder, timeout_seconds=0.5 if how == "slow" else 10)
    assert hub.files(REPO, "v1") == contents(folder)


def test_the_repository_that_was_made_is_named(hub, folder, waits):
    hub.fail("POST .*/preupload/", 403)
    with pytest.raises(PublishError, match=f"{REPO} was made, but nothing was published"):
        publish(folder)


def test_whether_a_commit_arrived_may_stay_unknown(hub, old, folder, waits):
    original = hub.answer

    def answer_then_break(method, target, *rest):
        answer = original(method, target, *rest)
        if "/commit/" in target:
            hub.fail("GET .*/refs", 500)
            raise ConnectionError
        return answer

    hub.answer = answer_then_break
    with pytest.raises(PublishError, match="Whether the commit arrived is not known"):
        publish(folder)
    assert hub.repositories[REPO].tags == {}
    hub.answer = original
    hub.heal()
    publish(folder)
    assert len(hub.repositories[REPO].commits) == 3


def test_the_server_says_how_long_to_wait(hub, old, folder, waits):
    hub.fail("GET .*/refs", 429, times=1, Retry_After="7")
    hub.fail("GET .*/refs", 429, times=1, RateLimit='"api";r=0;t=21')
    hub.fail("GET .*/refs", 503, times=1, Retry_After="100000")
    events = []
    publish(folder, retries=3, on_event=events.append)
    assert waits == [7, 21, 300]
    assert events[0] == (
        "could not list branches and tags: the Hub answered 429, 'the stand-in answers 429'; "
        "trying again in 7 s"
    )


def test_waits_grow(hub, folder, waits):
    hub.fail("GET /api/whoami-v2", 500)
    with pytest.raises(PublishError, match=r"answered 500 \(5 times\)"):
        publish(folder, retries=4)
    assert waits == [1, 2, 4, 8]


def test_no_server_at_all(hub, folder, waits):
    api = HfApi(endpoint="http://127.0.0.1:9")
    with pytest.raises(PublishError, match=r"could not log in: .*refused.*Nothing was published"):
        publish(folder, api=api)


def test_offline(hub, folder, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE forbids it"):
        publish(folder)
    assert hub.requests == []


def test_tokens_stay_secret(hub, folder, waits, monkeypatch):
    """A server may repeat a token, and the HTTP library quotes one that is no header."""
    hub.fail("GET .*/refs", 403, X_Error_Message=f"{hub.token} may not read this")
    with pytest.raises(PublishError, match=r"answered 403, '\*\*\* may not read this") as said:
        publish(folder)
    hub.heal()
    for token in ("hf_Odd\x0bTokenOfTheTester", "Other\x0bTokenOfTheTester"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PublishError, match=r"could not log in: Illegal header .*\*") as quoted:
            publish(folder)
        for failure in (said, quoted):
            assert "TokenOfTheTester" not in "".join(traceback.format_exception(failure.value))


def test_a_refused_token(hub, small_encoder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_AnotherToken")
    assert main(["publish", str(small_encoder), REPO]) == 1
    seen = "".join(capsys.readouterr())
    assert "could not log in: the Hub answered 401. Nothing was published. Log in with" in seen
    assert "AnotherToken" not in seen


@pytest.mark.parametrize(("how", "said"), [(500, "answered 500"), (401, "hf auth login")])
def test_the_command_fails_with_a_sentence(hub, old, small_encoder, waits, capsys, how, said):
    hub.fail("POST .*/commit/", how)
    assert main(["publish", str(small_encoder), REPO, "--tag", "v1"]) == 1
    streams = capsys.readouterr()
    assert said in streams.err
    assert "published and verified" not in streams.out
    assert hub.head(REPO) == old


def test_an_upload_that_is_cut_leaves_no_trace(hub, old, folder, waits):
    hub.fail("PUT /lfs-storage/", "cut")
    with pytest.raises(
        PublishError, match=r"could not upload .*\(2 times\)\. Nothing was published"
    ):
        publish(folder)
    assert hub.head(REPO) == old
    assert count(hub, "PUT /lfs-storage/") > 2


def test_a_storage_that_refuses_connections_at_first(hub, old, folder, waits):
    """The library then closes its client, and versions before 2 go on using the closed one."""
    batch, refused = hub._batch, []

    def batch_with_a_dead_address(**words):
        answer = batch(**words)
        if not refused:
            refused.append(True)
            upload = answer.content["objects"][0]["actions"]["upload"]
            upload["href"] = upload["href"].replace(hub.url, "http://127.0.0.1:9")
        return answer

    hub._batch = batch_with_a_dead_address
    publish(folder)
    assert refused
    assert hub.files(REPO, "v1") == contents(folder)
