"""Publishing against a Hub on this machine: what arrives, and what is refused before anything."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

import ssl_views.cli.publish
from ssl_views.cli import main
from ssl_views.encoder_folder import check_encoder
from ssl_views.hub import PublishError, prepare_repository, publish_encoder

REPO = "tester/encoder"


@pytest.fixture
def folder(small_encoder, tmp_path):
    return shutil.copytree(small_encoder, tmp_path / "encoder")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_files_arrive_bit_for_bit_in_one_commit(hub, folder):
    published = publish_encoder(folder, REPO, tag="v1", message="First")
    repository = hub.repositories[REPO]
    assert hub.files(REPO) == hub.files(REPO, "v1") == contents(folder)
    assert list(repository.messages.values()) == ["initial", "First"]
    assert repository.tags == {"v1": published.commit} == {"v1": hub.head(REPO)}
    assert (published.repo_id, published.tag, published.dry_run) == (REPO, "v1", False)
    assert published.url == f"{hub.url}/{REPO}"
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items()}
    assert published.files == hashes
    assert published.left_out == ()
    assert not hub.private(REPO)
    assert hub.unknown == []
    assert ("GET", f"/{REPO}/resolve/main/model.safetensors") not in hub.requests


def test_what_was_published_downloads_by_tag_and_commit(hub, folder):
    published = publish_encoder(folder, REPO, tag="v1")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another card\n")
    second = publish_encoder(folder, REPO)
    for revision, readme in (("v1", False), (published.commit, False), (second.commit, True)):
        found = Path(snapshot_download(REPO, revision=revision))
        assert ("Another card" in (found / "README.md").read_text()) == readme
    assert published.commit != second.commit
    assert hub.unknown == []


def test_only_the_files_of_the_layout_are_published(hub, folder):
    (folder / "model.onnx").write_bytes(b"a graph")
    planted = ("training_args.bin", ".env", "token", "optimizer.pt", "trainer_state.json")
    for name in planted:
        (folder / name).write_text("hf_secret")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_text("other weights")
    published = publish_encoder(folder, REPO)
    expected = {"config.json", "model.safetensors", "README.md", "model.onnx"}
    assert set(hub.files(REPO)) == set(published.files) == expected
    assert published.left_out == tuple(sorted([*planted, "checkpoint-3/"]))


def test_a_dry_run_makes_no_request(hub, folder):
    (folder / "training_args.bin").write_text("hf_secret")
    published = publish_encoder(folder, REPO, tag="v1", dry_run=True)
    assert hub.requests == []
    assert (published.commit, published.dry_run) == (None, True)
    assert set(published.files) == {"config.json", "model.safetensors", "README.md"}
    assert published.left_out == ("training_args.bin",)


def test_a_short_name_is_one_of_the_user(hub, folder):
    assert publish_encoder(folder, "encoder").repo_id == REPO
    assert prepare_repository("later") == "tester/later"
    assert hub.files("tester/later") == {}


def test_a_private_repository_is_for_its_user_only(hub, folder):
    publish_encoder(folder, REPO, private=True)
    publish_encoder(folder, REPO, private=True, tag="again")
    publish_encoder(folder, REPO)  # stays private
    assert hub.private(REPO)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).repo_info(REPO)


def test_a_public_repository_is_not_taken_for_a_private_one(hub, folder):
    hub.add_repository(REPO)
    with pytest.raises(PublishError, match="must be private, as asked; it is public"):
        publish_encoder(folder, REPO, private=True)
    with pytest.raises(PublishError, match="must be private, as asked; it is public"):
        prepare_repository(REPO, private=True)
    assert hub.files(REPO) == {}
    assert not any("preupload" in path for _, path in hub.requests)


def test_a_tag_with_other_files_is_refused_before_uploading(hub, folder):
    publish_encoder(folder, REPO, tag="v1")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another card\n")
    head = hub.head(REPO)
    hub.requests.clear()
    with pytest.raises(PublishError, match=r"a tag v1 with other files \(README.md\)"):
        publish_encoder(folder, REPO, tag="v1")
    assert hub.head(REPO) == head
    assert not any("preupload" in path for _, path in hub.requests)


def test_a_branch_is_not_taken_for_a_tag(hub, folder):
    hub.add_repository(REPO)
    hub.repositories[REPO].branches["dev"] = hub.head(REPO)
    with pytest.raises(PublishError, match="has a branch dev"):
        publish_encoder(folder, REPO, tag="dev")


def test_publishing_again_without_change_makes_no_commit(hub, folder):
    first = publish_encoder(folder, REPO, tag="v1")
    for tag in (None, "v1", "v2"):
        assert publish_encoder(folder, REPO, tag=tag).commit == first.commit
    assert len(hub.repositories[REPO].commits) == 2
    assert hub.repositories[REPO].tags == {"v1": first.commit, "v2": first.commit}


def test_files_of_an_earlier_encoder_are_deleted(hub, folder):
    hub.add_repository(REPO, {"model.onnx": b"old graph", "spectrum.png": b"old picture"})
    before = len(hub.repositories[REPO].commits)
    publish_encoder(folder, REPO)
    assert hub.files(REPO) == contents(folder)
    assert len(hub.repositories[REPO].commits) == before + 1


def test_other_files_stay_and_are_named(hub, folder):
    others = {"pytorch_model.bin": b"x", "code/modeling.py": b"y", "notes.txt": b"z"}
    hub.add_repository(REPO, others)
    events = []
    publish_encoder(folder, REPO, on_event=events.append)
    assert hub.files(REPO) == {**others, **contents(folder)}
    dangerous, harmless = events
    assert "code/modeling.py, pytorch_model.bin: loaders may prefer or run such" in dangerous
    assert "keeps its other files: notes.txt" in harmless


def test_files_that_changed_on_the_way_are_noticed(hub, folder):
    hub.fail("POST .*/commit/", "corrupt")
    with pytest.raises(
        PublishError, match=r"config.json, model.safetensors, README.md at commit .* not tagged"
    ):
        publish_encoder(folder, REPO, tag="v1")
    assert hub.repositories[REPO].tags == {}
    hub.heal()
    publish_encoder(folder, REPO, tag="v1")
    assert hub.files(REPO, "v1") == contents(folder)


def test_a_folder_that_changes_meanwhile_is_noticed(hub, folder):
    hub.fail("POST .*/preupload/", lambda: (folder / "README.md").write_text("# Other\n"), times=1)
    with (
        pytest.warns(UserWarning, match="empty or missing yaml metadata"),
        pytest.raises(PublishError, match=r"^README.md at commit"),
    ):
        publish_encoder(folder, REPO, tag="v1")
    assert hub.repositories[REPO].tags == {}


def test_a_commit_of_someone_else_in_between_is_kept(hub, folder):
    hub.add_repository(REPO)
    hub.fail("POST .*/commit/", lambda: hub.add_repository(REPO, {"theirs.txt": b"1"}), times=1)
    with pytest.raises(
        PublishError, match=r"412.*Nothing was published\. Someone else has committed meanwhile"
    ):
        publish_encoder(folder, REPO, tag="v1")
    assert hub.files(REPO) == {"theirs.txt": b"1"}
    publish_encoder(folder, REPO, tag="v1")
    assert hub.files(REPO, "v1") == {"theirs.txt": b"1", **contents(folder)}


def test_a_tag_of_someone_else_in_between_is_noticed(hub, folder):
    hub.add_repository(REPO)
    first = hub.head(REPO)
    hub.fail("POST .*/tag/", lambda: hub.repositories[REPO].tags.update(v1=first), times=1)
    with pytest.raises(PublishError, match=f"must point to .*; it points to {first}"):
        publish_encoder(folder, REPO, tag="v1")


def test_a_card_that_the_hub_refuses_is_no_commit(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [\n---\n# Broken\n")
    with pytest.raises(PublishError, match=r"Invalid metadata in README\.md.*was made, but"):
        publish_encoder(folder, REPO)
    assert hub.files(REPO) == {}


def test_repositories_of_others_are_not_for_us(hub, folder):
    hub.add_repository("other/encoder")
    for repo_id in ("other/encoder", "other/new"):
        with pytest.raises(PublishError, match=r"403.*Use a token with the right to write"):
            publish_encoder(folder, repo_id, retries=0)
    assert hub.files("other/encoder") == {}


@pytest.mark.parametrize(
    "repo_id", ["a/b/c", "hf-hub:tester/encoder", "tester/enc oder", "", "-x", "tester/e..f"]
)
def test_names_of_repositories(hub, folder, repo_id):
    for call in (lambda: publish_encoder(folder, repo_id), lambda: prepare_repository(repo_id)):
        with pytest.raises(ValueError, match="repo_id must be the name of a repository"):
            call()
    assert hub.requests == []


@pytest.mark.parametrize(
    "tag", ["", "main", "-v", "v 1", "a..b", "v1.", "v.lock", "a~b", "a/b", "é", "a" * 40, "v\n"]
)
def test_names_of_tags(hub, folder, tag):
    with pytest.raises(ValueError, match="tag must be a name for git"):
        publish_encoder(folder, REPO, tag=tag)
    assert hub.requests == []


def test_other_arguments(hub, folder):
    with pytest.raises(ValueError, match="message must say something"):
        publish_encoder(folder, REPO, message=" ")
    with pytest.raises(ValueError, match="retries must be 0 or more"):
        publish_encoder(folder, REPO, retries=-1)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        publish_encoder(folder, REPO)
    assert hub.requests == []


def test_the_time_limit_of_the_process_is_left_as_it_was(hub, folder):
    client = get_session()
    before = client.timeout
    publish_encoder(folder, REPO, timeout_seconds=7)
    hub.fail("POST .*/commit/", 403)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(PublishError):
        publish_encoder(folder, REPO, timeout_seconds=7)
    assert get_session() is client
    assert client.timeout == before


def test_the_command(hub, folder, capsys):
    (folder / "training_args.bin").write_text("hf_secret")
    assert main(["publish", str(folder), REPO, "--tag", "v1", "--private", "true"]) == 0
    output = capsys.readouterr().out
    commit = hub.head(REPO)
    for line in (
        "holds test_resnet: ",
        "note: licence: not stated",
        "note: training images: not stated in the card (ssl-views export --data)",
        f"note: the card says how to load THIS_FOLDER; export with --title {REPO}",
        "left out, as no part of an encoder: training_args.bin",
        f"published and verified: {hub.url}/{REPO}, commit {commit}, tag v1.",
        f'timm.create_model("hf-hub:{REPO}@v1", pretrained=True)',
        f'transformers.AutoModel.from_pretrained("{REPO}", revision="v1")',
        f'ssl_views.load_encoder("{REPO}", revision="v1")',
    ):
        assert line in output
    for name, data in hub.files(REPO, "v1").items():
        assert f"{len(data):,} bytes  sha256 {hashlib.sha256(data).hexdigest()}" in output, name
    assert hub.private(REPO)
    assert hub.token not in output


def test_the_command_in_a_dry_run(hub, folder, capsys):
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets: [a/b]\n---\n# Card\n")
    assert main(["publish", str(folder), REPO, "--dry_run", "true"]) == 0
    output = capsys.readouterr().out
    assert "dry run: nothing was sent" in output
    assert "not stated" not in output
    assert hub.requests == []


def test_the_exit_codes_of_the_command(hub, folder, tmp_path, capsys, monkeypatch):
    assert main(["publish", str(folder), "a/b/c"]) == 2
    assert "repo_id must be" in capsys.readouterr().err
    assert main(["publish", str(tmp_path / "nothing"), REPO]) == 2
    assert "config.json" in capsys.readouterr().err
    hub.fail("POST .*/commit/", "corrupt")
    assert main(["publish", str(folder), REPO]) == 1
    assert "not tagged" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert main(["publish", str(folder), REPO]) == 1
    assert "could not log in: there is no login. Nothing was published. Log in with" in (
        capsys.readouterr().err
    )


def test_the_command_names_what_an_architecture_needs(hub, folder, capsys, monkeypatch):
    info = dataclasses.replace(check_encoder(folder), needs="their_package.models")
    monkeypatch.setattr(ssl_views.cli.publish, "check_encoder", lambda folder: info)
    (folder / "README.md").write_text("---\nlicense: [\n---\n# Broken\n")
    assert main(["publish", str(folder), REPO, "--dry_run", "true"]) == 0
    output = capsys.readouterr().out
    assert "install and import their_package.models first" in output
    assert "the metadata of README.md cannot be read" in output


def test_the_stand_in_is_strict(hub):
    first = hub.add_repository(REPO, {"a.bin": b"1", "b.txt": b"1"})
    second = hub.add_repository(REPO, {"a.bin": b"2"})
    for revision, content in ((first, b"1"), (second, b"2"), ("main", b"2")):
        assert Path(hf_hub_download(REPO, "a.bin", revision=revision)).read_bytes() == content
    _, large, small = HfApi().list_repo_tree(REPO, revision=first)
    assert large.lfs.sha256 == hashlib.sha256(b"1").hexdigest()
    assert small.blob_id == "56a6051ca2b02b04ef92d5150c9ef600403cb1de"  # git hash-object
    assert hub.unknown == []
    for call in (
        lambda: HfApi(token="hf_Other").whoami(),
        lambda: HfApi(token=False).create_repo("tester/x"),
        lambda: HfApi().list_repo_refs("tester/nothing"),
        lambda: HfApi().get_model_tags(),
        lambda: hf_hub_download(REPO, "a.bin", revision="v9"),
    ):
        with pytest.raises(HfHubHTTPError, match=r"40[14]|Invalid user token"):
            call()
    assert hub.unknown == [("GET", "/api/models-tags-by-type")]
