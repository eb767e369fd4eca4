"""Tokens are written nowhere, what is published holds no pickle, and no file brings code to run."""

import ast
import base64
import json
import os
import pickle
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from corpus import write_images
from huggingface_hub import constants, get_token
from transformers.trainer_pt_utils import safe_globals

import ssl_views
from ssl_views import SSLViewsTrainingArguments, checkpoints
from ssl_views.cli import main

CANARY = "hf_CanaryThatMustNotBeWritten0123456789"
OTHER = "hf_AnotherOneFromTheFileOfTokens9876543"
SMALL = ("--backbone", "test_resnet", "--per_device_train_batch_size", "16", "--num_views", "2",
         "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1")  # fmt: skip


def forms(secret):
    """Return how a secret may lie in a file: as it is, as UTF-16, reversed, and in base64."""
    text = secret.encode()
    found = {
        text,
        secret.encode("utf-16-le"),
        secret.encode("utf-16-be"),
        text[::-1],
        text.hex().encode(),
    }
    for start in range(3):  # base64 looks different at every place modulo three
        encoded = base64.b64encode(bytes(start) + text)
        cut = (start * 8 + 5) // 6
        found.add(encoded[cut : len(encoded) // 4 * 4 - 4])
    return found


def hits(folder, secrets=(CANARY, OTHER)):
    """Return the files that hold a secret, looking into archives too."""
    wanted = [form for secret in secrets for form in forms(secret)]
    found = set()
    for path in Path(folder).rglob("*"):
        if not path.is_file():
            continue
        contents = [path.read_bytes(), str(path).encode()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if any(form in content for form in wanted for content in contents):
            found.add(str(path))
    return found


def pickles(folder, besides=()):
    """Return the files that are pickles, or hold one, by what they hold."""
    found = set()
    for path in Path(folder).rglob("*"):
        inside = path.relative_to(folder).parts[0]
        if path.is_file() and not inside.startswith(tuple(besides) or "\0"):
            data = path.read_bytes()
            archived = zipfile.is_zipfile(path)
            if archived:
                with zipfile.ZipFile(path) as archive:
                    archived = any(name.endswith(".pkl") for name in archive.namelist())
            named = path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
            if archived or named or (data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5"):
                found.add(path.name)
    return found


_written, _listening = set(), threading.Event()


def _hook(event, arguments):
    if _listening.is_set() and event == "open" and isinstance(arguments[0], (str, bytes)):
        mode, flags = arguments[1], arguments[2]
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
        if set(str(mode or "r")) & set("wax+") or (isinstance(flags, int) and flags & writes):
            _written.add(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_hook)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Fifty images without labels, and ten to evaluate on."""
    folder = tmp_path_factory.mktemp("source")
    write_images(folder / "train", 50)
    write_images(folder / "test", 10, seed=1)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, images):
    """A folder in which whole runs were made with two tokens at hand."""
    place = tmp_path_factory.mktemp("secrets")
    token_file = tmp_path_factory.mktemp("tokens") / "token"
    token_file.write_text(OTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", CANARY)
        patch.setenv("HUGGING_FACE_HUB_TOKEN", CANARY)
        patch.setenv("HF_TOKEN_PATH", str(token_file))
        patch.setattr(constants, "HF_TOKEN_PATH", str(token_file))
        patch.chdir(place)
        (place / "tmp").mkdir()
        patch.setenv("TMPDIR", str(place / "tmp"))
        assert get_token() == CANARY  # what a library would find
        _written.clear()
        _listening.set()
        try:
            words = ["pretrain", *SMALL, "--max_steps", "4", "--output_dir"]
            source = ["--dataset", str(images)]
            assert main([*words, "digits"]) == 0
            assert main(["evaluate", "digits", "--dataset", "digits"]) == 0
            assert main(["export", "digits", "encoder"]) == 0
            assert main([*words, "run", *source, "--cache", "cache"]) == 0
            assert main([*words, "run", *source, "--cache", "cache"]) == 0  # resumed
            assert main(["preview", "--output", "views.png", "--num_images", "2", *source]) == 0
            patch.delenv("HF_TOKEN")
            patch.delenv("HUGGING_FACE_HUB_TOKEN")
            assert get_token() == OTHER
            assert main([*words, "run_of_the_other", *source]) == 0
        finally:
            _listening.clear()
    return place


@pytest.mark.slow
class TestTokens:
    def test_no_file_of_a_run_holds_one(self, place):
        files = [path for path in place.rglob("*") if path.is_file()]
        assert len(files) >= 20
        assert hits(place) == set()

    def test_no_other_file_was_written_that_holds_one(self, place):
        elsewhere = {Path(path) for path in _written if not path.startswith(str(place))}
        for path in elsewhere:
            if path.is_file() and not str(path).startswith(("/dev/", "/proc/")):
                content = path.read_bytes()
                wanted = [form for secret in (CANARY, OTHER) for form in forms(secret)]
                assert not any(form in content for form in wanted), path

    def test_arguments_that_hold_one_are_refused(self, capsys, tmp_path):
        with pytest.raises(ValueError, match="HF_TOKEN") as caught:
            SSLViewsTrainingArguments(output_dir=str(tmp_path), hub_token=CANARY)
        assert CANARY not in str(caught.value)
        words = ["pretrain", *SMALL, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
        assert main([*words, "--hub_token", CANARY]) == 2
        captured = capsys.readouterr()
        assert CANARY not in captured.out + captured.err
        assert hits(tmp_path) == set()

    @pytest.mark.parametrize(
        "write",
        [
            lambda path: path.write_text(f"x{CANARY}y"),
            lambda path: path.write_text(OTHER, encoding="utf-16"),
            lambda path: path.write_bytes(base64.b64encode(b"ab" + CANARY.encode() + b"cd")),
            lambda path: path.write_bytes(base64.b64encode(b"abc" + CANARY.encode())),
            lambda path: torch.save({"token": CANARY}, path),
            lambda path: path.write_bytes(pickle.dumps([OTHER])),
            lambda path: path.with_name(CANARY).touch(),
        ],
    )
    def test_the_search_finds_them(self, tmp_path, write):
        write(tmp_path / "file")
        assert len(hits(tmp_path)) == 1


@pytest.mark.slow
class TestPickles:
    def test_none_in_what_is_published(self, place):
        assert pickles(place / "encoder") == set()
        names = {path.name for path in (place / "encoder").iterdir()}
        assert names == {"config.json", "model.safetensors", "README.md", "spectrum.png"}

    def test_none_in_a_run_outside_its_checkpoints(self, place):
        assert (place / "run" / "model.safetensors").is_file()
        assert pickles(place / "run", besides=("checkpoint-",)) == set()

    def test_no_pickled_arguments_anywhere(self, place):
        assert list(place.rglob("training_args.bin")) == []
        assert list(place.glob("run/checkpoint-*/training_args.json"))

    def test_arguments_are_written_without_tokens(self, place):
        for path in place.glob("run/**/training_args.json"):
            stored = json.loads(path.read_text())
            assert stored.get("hub_token") in (None, "<HUB_TOKEN>")
            assert stored["learning_rate"] > 0

    def test_checkpoints_need_no_trust(self, place):
        files = [p for p in place.glob("run/checkpoint-*/*") if p.suffix in (".pt", ".pth")]
        assert len(files) >= 3
        for path in files:
            with safe_globals():  # what transformers itself allows
                torch.load(path, weights_only=True)

    def test_the_search_finds_them(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
        (tmp_path / "x.json").write_bytes(pickle.dumps({"a": 1}))
        (tmp_path / "y.bin").write_bytes(b"")
        (tmp_path / "z.json").write_text("{}")
        assert pickles(tmp_path) == {"weights.safetensors", "x.json", "y.bin"}


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def hostile(path, marker, plain=False):
    if plain:
        path.write_bytes(pickle.dumps({"a": Hostile(marker)}))
    else:
        thing = Hostile(marker)
        torch.save({"a": thing, "state_dict": thing}, path)


def manifest_of(folder):
    """Bring a manifest up to date, as an attacker would."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    checkpoints.seal(folder, {name: manifest[name] for name in ("step", "world_size", "run")})


def attempt(*words):
    """Run a command that may end in any way but by running foreign code."""
    try:
        return main([str(word) for word in words])
    except Exception as error:  # noqa: BLE001 (transformers and torch refuse in many ways)
        return error


@pytest.mark.slow
class TestHostileFiles:
    @pytest.mark.parametrize("plain", [False, True], ids=["torch", "pickle"])
    def test_the_file_does_run_code_where_it_is_trusted(self, tmp_path, plain):
        hostile(tmp_path / "x.pt", tmp_path / "marker", plain)
        if plain:
            pickle.loads((tmp_path / "x.pt").read_bytes())
        else:
            torch.load(tmp_path / "x.pt", weights_only=False)
        assert (tmp_path / "marker").is_dir()

    def resume(self, run, images, checkpoint):
        words = ["pretrain", *SMALL, "--max_steps", 4, "--dataset", images, "--output_dir", run]
        return attempt(*words, "--resume_from_checkpoint", checkpoint)

    def test_an_untouched_checkpoint_is_resumed(self, place, tmp_path, images):
        run = tmp_path / "run"
        shutil.copytree(place / "run", run)
        shutil.rmtree(run / "checkpoint-4")
        manifest_of(run / "checkpoint-2")
        assert self.resume(run, images, run / "checkpoint-2") == 0
        assert (run / "checkpoint-4").is_dir()

    @pytest.mark.parametrize(
        ("name", "sealed", "plain"),
        [
            ("optimizer.pt", True, False),
            ("optimizer.pt", True, True),
            ("optimizer.pt", False, False),
            ("scheduler.pt", True, False),
            ("rng_state.pth", True, False),
            ("rng_state.pth", False, True),
            ("training_args.bin", True, False),
            ("training_args.bin", False, True),
            ("pytorch_model.bin", True, False),
            ("pytorch_model.bin", False, True),
            ("scaler.pt", True, False),
            ("optimizer.bin", True, False),
        ],
    )
    def test_a_checkpoint(self, place, tmp_path, images, name, sealed, plain):
        run, marker = tmp_path / "run", tmp_path / "marker"
        shutil.copytree(place / "run", run)
        shutil.rmtree(run / "checkpoint-4")
        checkpoint = run / "checkpoint-2"
        is_loaded = (checkpoint / name).is_file()
        hostile(checkpoint / name, marker, plain)
        if name == "pytorch_model.bin" and plain:
            (checkpoint / "model.safetensors").unlink()
        if sealed:
            manifest_of(checkpoint)
        result = self.resume(run, images, checkpoint)
        assert not marker.exists()
        if is_loaded or not sealed:
            assert result != 0
        attempt("export", checkpoint, tmp_path / "encoder")
        assert not marker.exists()

    def test_a_run_folder(self, place, tmp_path, images):
        for number, plain in enumerate((False, True)):
            run, marker = tmp_path / f"run{number}", tmp_path / "marker"
            run.mkdir()
            shutil.copy(place / "run" / "config.json", run)
            for name in ("pytorch_model.bin", "model.bin", "training_args.bin", "model.pth"):
                hostile(run / name, marker, plain)
            for words in (("evaluate", run, "--dataset", images), ("export", run, run / "out")):
                assert attempt(*words) != 0
            # Beside good weights it is not looked at.
            shutil.copy(place / "run" / "model.safetensors", run)
            assert attempt("export", run, tmp_path / f"encoder{number}") == 0
            assert not marker.exists()
            assert pickles(tmp_path / f"encoder{number}") == set()

    def test_weights_that_are_a_pickle_in_disguise(self, place, tmp_path, images):
        run, marker = tmp_path / "run", tmp_path / "marker"
        run.mkdir()
        shutil.copy(place / "run" / "config.json", run)
        hostile(run / "model.safetensors", marker)
        assert attempt("export", run, tmp_path / "encoder") != 0
        assert attempt("evaluate", run, "--dataset", images) != 0
        assert not marker.exists()

    def test_a_configuration_that_names_code(self, place, tmp_path, images):
        run, marker = tmp_path / "run", tmp_path / "marker"
        run.mkdir()
        shutil.copy(place / "run" / "model.safetensors", run)
        config = json.loads((place / "run" / "config.json").read_text())
        config["auto_map"] = {
            name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
        }
        config["trust_remote_code"] = True
        (run / "config.json").write_text(json.dumps(config))
        code = (
            f"import os\nos.mkdir({str(marker)!r})\nclass AutoConfig: pass\nclass AutoModel: pass\n"
        )
        (run / "evil.py").write_text(code)
        (run / "__init__.py").write_text(code)
        attempt("evaluate", run, "--dataset", images)
        attempt("export", run, tmp_path / "encoder")
        assert not marker.exists()
        exported = tmp_path / "encoder" / "config.json"
        if exported.is_file():
            assert "auto_map" not in json.loads(exported.read_text())

    def test_a_cache_that_is_a_pickle(self, place, tmp_path, images):
        marker = tmp_path / "marker"
        shutil.copytree(place / "cache", tmp_path / "cache")
        for name in ("images.npz", "pixels.bin", "cache.json"):
            assert (tmp_path / "cache" / name).is_file()
            (tmp_path / "cache" / name).write_bytes(pickle.dumps(Hostile(marker)))
            words = ["pretrain", *SMALL, "--max_steps", "1", "--save_strategy", "no"]
            words += ["--output_dir", tmp_path / name, "--cache", tmp_path / "cache"]
            words += ["--dataset", images]
            assert attempt(*words) == 0  # it is made again
            assert not marker.exists()

    def test_arguments_that_are_a_yaml_object(self, tmp_path):
        marker = tmp_path / "marker"
        path = tmp_path / "run.yaml"
        path.write_text(f"backbone: !!python/object/apply:os.mkdir ['{marker}']\n")
        assert attempt("pretrain", path) != 0
        assert not marker.exists()


def calls():
    """Yield (place, name, keywords) of every call in the package."""
    for path in sorted(Path(ssl_views.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield f"{path.name}:{node.lineno}", name, keywords


class TestCalls:
    def test_weights_are_loaded_from_safetensors_only(self):
        loading = [c for c in calls() if c[1].endswith(".from_pretrained")]
        assert loading
        for place_of, _, keywords in loading:
            assert keywords.get("use_safetensors") == "True", place_of
            assert "trust_remote_code" not in keywords, place_of

    def test_nothing_is_unpickled_or_evaluated(self):
        for place_of, name, keywords in calls():
            if name.endswith("torch.load"):
                assert keywords.get("weights_only") == "True", place_of
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False", place_of
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load"), (
                place_of
            )
            assert keywords.get("trust_remote_code", "False") == "False", place_of
