"""Studies to test with."""

import yaml

from ssl_views.sweep.study import Study


def write_study(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def make_study(tmp_path, grid=None, **base):
    grid = grid or {"num_views": [2, 4], "seed": [0, 1]}
    return Study.read(write_study(tmp_path / "study.yaml", base=base, grid=grid))
