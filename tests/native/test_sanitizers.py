"""The native engine under the address and undefined behaviour sanitizers: minutes."""

import ast
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_views.native import instruction_sets

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("render_random_records.py")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
RECORDS = 100_000  # at least so many of every instruction set

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizer as Linux does"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def constants_of_setup():
    """The constants of setup.py, which cannot be imported."""
    body = [n for n in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(n, ast.Assign)]
    names = {}
    exec(compile(ast.Module(body, []), "setup.py", "exec"), names)
    return names


def compile_library(folder, sanitize):
    """Compile as setup.py does, with other flags at the end, and return the library."""
    setup = constants_of_setup()
    isas = setup["X86"] if platform.machine() in ("x86_64", "AMD64") else setup["OTHER"]
    listed = " ".join(f"DO({isa})" for isa in isas)
    parts = [("dispatch.cpp", "dispatch", [f"-DSSL_VIEWS_ISAS(DO)={listed}"])]
    for isa, (lanes, flags) in isas.items():
        parts.append(("views.cpp", isa, [f"-DISA={isa}", f"-DLANES={lanes}", *flags]))
    flags = ["-fPIC", *setup["FLAGS"], *sanitize]
    for source, name, own in parts:
        source = ROOT / setup["NATIVE"] / source
        subprocess.run(
            ["g++", *own, *flags, "-c", str(source), "-o", f"{folder}/{name}.o"], check=True
        )
    library = folder / "_views.so"
    objects = [f"{folder}/{name}.o" for _, name, _ in parts]
    subprocess.run(
        ["g++", "-shared", "-pthread", *sanitize, *objects, "-o", str(library)], check=True
    )
    return library


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return compile_library(tmp_path_factory.mktemp("sanitized"), SANITIZE)


def run(library, *arguments):
    """Run the driver, with the sanitizer loaded before anything else."""
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan", "libubsan", "libstdc++")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, str(DRIVER), str(library), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_random_records_touch_no_byte_that_is_not_theirs(sanitized):
    result = run(sanitized, str(RECORDS), "right")
    assert result.returncode == 0, result.stderr[-5000:]
    rendered = dict(line.split() for line in result.stdout.splitlines())
    assert list(rendered) == instruction_sets()
    assert min(map(int, rendered.values())) >= RECORDS
    assert "Sanitizer" not in result.stderr


@pytest.mark.parametrize(("short", "what"), [("source", "READ of"), ("output", "WRITE of")])
def test_the_sanitizer_sees_one_byte_too_many(sanitized, short, what):
    result = run(sanitized, "0", f"short {short}")
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer" in result.stderr
    assert what in result.stderr
    assert "views.cpp" in result.stderr
    assert "nothing was seen" not in result.stdout
