"""Studies as files: the grid, what is refused, and those of the examples."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from study_cases import make_study, write_study

from ssl_views.cli.arguments import make_parser, parse_weight, read_arguments
from ssl_views.cli.pretrain import ARGUMENTS
from ssl_views.cli.setup import make_config
from ssl_views.cli.sweep import check_flags
from ssl_views.data.image_limits import ImageLimits
from ssl_views.sweep.study import Study, group_name

STUDIES = Path(__file__).parents[1] / "examples" / "studies"


class TestStudy:
    def test_is_the_product_of_its_lists_and_whole_seeds_come_first(self, tmp_path):
        grid = {"seed": [0, 1], "num_views": [2, 4], "projector_dim": [8, 16]}
        study = make_study(tmp_path, grid, learning_rate=0.1)
        assert len(study.runs) == 8
        assert [run.flags["seed"] for run in study.runs] == [0] * 4 + [1] * 4
        settings = [(r.settings["num_views"], r.settings["projector_dim"]) for r in study.runs]
        assert settings[:4] == [(2, 8), (2, 16), (4, 8), (4, 16)]
        assert all(run.flags["learning_rate"] == 0.1 for run in study.runs)
        assert len({run.name for run in study.runs}) == len({run.key for run in study.runs}) == 8

    def test_several_grids_are_added(self, tmp_path):
        grids = [{"num_views": [2], "seed": [0]}, {"num_views": [4, 8], "fraction": [0.5]}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [dict(run.settings) for run in runs] == [
            {"num_views": 2, "seed": 0},
            {"num_views": 4, "fraction": 0.5},
            {"num_views": 8, "fraction": 0.5},
        ]

    def test_one_value_in_a_grid_is_for_its_runs_and_does_not_name_them(self, tmp_path):
        grids = [{"num_views": [2], "max_steps": 9}, {"num_views": [4], "max_steps": 5}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [dict(run.settings) for run in runs] == [{"num_views": 2}, {"num_views": 4}]
        assert [run.flags["max_steps"] for run in runs] == [9, 5]

    def test_a_run_is_what_all_its_flags_are(self, tmp_path):
        def keys(**base):
            return [run.key for run in make_study(tmp_path, **base).runs]

        assert keys() == keys()
        assert not set(keys()) & set(keys(learning_rate=0.1))
        assert not set(keys(dataset="/a/photos")) & set(keys(dataset="/b/photos"))

    def test_a_run_is_the_same_wherever_its_images_are(self, tmp_path):
        places = [str(tmp_path / "here"), "user/name"]
        away = make_study(tmp_path, dataset=places).runs[0]
        (tmp_path / "here").mkdir()
        here = make_study(tmp_path, dataset=places).runs[0]
        assert [run.flags["dataset"] for run in (away, here)] == ["user/name", places[0]]
        assert here.key == away.key

    def test_takes_the_first_place_of_images_that_exists(self, tmp_path):
        (tmp_path / "here").mkdir()
        places = [str(tmp_path / "not here"), str(tmp_path / "here"), "user/name"]
        assert make_study(tmp_path, dataset=places).runs[0].flags["dataset"] == places[1]
        places.pop(1)
        assert make_study(tmp_path, dataset=places).runs[0].flags["dataset"] == "user/name"

    def test_names_are_folders(self, tmp_path):
        grid = {"recipe_args": [{"crop_scale": [0.2, 1.0]}, {"crop_scale": [0.1, 1.0]}]}
        for run in make_study(tmp_path, grid).runs:
            assert "/" not in run.name
            assert (tmp_path / run.name).mkdir() is None

    def test_knows_whether_a_point_of_a_curve_is_a_run(self, tmp_path):
        assert make_study(tmp_path, lr_scheduler_type="constant").every_point_counts
        warmup = {"lr_scheduler_type": "constant_with_warmup"}
        assert make_study(tmp_path, **warmup, warmup_steps=30).every_point_counts
        assert not make_study(tmp_path, **warmup, warmup_steps=0.1).every_point_counts
        assert not make_study(tmp_path, **warmup, warmup_steps="30").every_point_counts
        assert not make_study(tmp_path, **warmup).every_point_counts
        assert not make_study(tmp_path, lr_scheduler_type="cosine").every_point_counts
        assert not make_study(tmp_path).every_point_counts

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"base": {}}, "must hold a grid of settings"),
            ({"grid": {"seed": [0]}, "metrc": "knn"}, "unknown key 'metrc'.*metric"),
            ({"grid": {"seed": 0}}, "must hold lists of values by flag"),
            ({"grid": {"seed": []}}, "must hold lists of values by flag"),
            ({"grid": {}}, "must hold lists of values by flag"),
            ({"grid": {"seed": [0, 0]}}, "must come once"),
            ({"grid": {"output_dir": ["a"]}}, "must not set 'output_dir'"),
            (
                {"grid": {"num_views": [2]}, "reference": {"num_views": 4}},
                "must be settings that vary in its grid",
            ),
            (  # the same in all runs
                {
                    "grid": {"num_views": [2]},
                    "base": {"loss": "kernel"},
                    "reference": {"loss": "kernel"},
                },
                "must be settings that vary in its grid",
            ),
            ({"grid": {"seed": [0]}, "targets": 0.8}, "must be a list of numbers; got 0.8"),
            ({"grid": {"seed": [0]}, "base": ["loss"]}, "base of .* must hold flags and their"),
            ({"grid": {"seed": [0]}, "reference": 64}, "reference of .*; got 64"),
            ({"grid": {"seed": [0]}, "evaluate": "yes"}, "evaluate of .*; got 'yes'"),
        ],
    )
    def test_refuses_what_is_no_study(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=message):
            Study.read(write_study(tmp_path / "study.yaml", **content))

    @pytest.mark.parametrize(
        ("given", "flags"),
        [({}, {}), (True, {}), ({"k": 3}, {"k": 3}), (False, None), (None, None)],
    )
    def test_evaluates_with_flags_or_without(self, tmp_path, given, flags):
        path = write_study(tmp_path / "s.yaml", grid={"seed": [0]}, evaluate=given)
        assert Study.read(path).evaluate == flags

    def test_one_seed_for_a_grid_is_no_list(self, tmp_path):
        grids = [{"num_views": [2, 4], "seed": 0}, {"num_views": [2], "seed": [1]}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [run.flags["seed"] for run in runs] == [0, 0, 1]

    def test_refuses_what_is_no_yaml(self, tmp_path):
        (tmp_path / "s.yaml").write_text("grid: [")
        with pytest.raises(ValueError, match="a study must be YAML"):
            Study.read(tmp_path / "s.yaml")

    def test_refuses_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            Study.read(tmp_path / "no.yaml")

    def test_groups_have_names_without_the_seed(self):
        settings = {"fraction": 0.5, "seed": 1, "model_args": {"a": 1}}
        assert group_name(settings) == 'fraction 0.5, model_args {"a": 1}'
        assert group_name({"seed": 1}) == "all runs"

    @pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
    def test_those_of_the_examples_can_be_run(self, path, tmp_path):
        study = Study.read(path, {"dataset": "digits"})
        check_flags(study)
        assert study.about
        assert study.every_point_counts
        assert {run.flags["seed"] for run in study.runs} == {0, 1, 2}
        for run in study.runs[: len(study.runs) // 3]:  # of the first seed
            file = tmp_path / "flags.yaml"
            file.write_text(yaml.safe_dump({**run.flags, "output_dir": str(tmp_path)}))
            parser = make_parser("pretrain", "", *ARGUMENTS)
            source, views, model, watch, args = read_arguments(parser, [str(file)])
            assert args.max_grad_norm == 0
            rows = [{"image": Image.new("RGB", (160, 160))}]
            config = make_config(rows, source.dataset, views, model, limits=ImageLimits())
            assert config.num_views == run.flags["num_views"]
            assert watch.probe_test

    def test_flags_are_checked_before_anything_is_run(self, tmp_path):
        with pytest.raises(ValueError, match=r"'num_vews' is none.*num_views"):
            check_flags(make_study(tmp_path, num_vews=3))
        study = replace(make_study(tmp_path), evaluate={"kk": 3})
        with pytest.raises(ValueError, match="flags of ssl-views evaluate; 'kk' is none"):
            check_flags(study)


class TestWeightOverD:
    def test_is_divided_by_the_width(self):
        assert parse_weight("4/D", 64) == 1 / 16
        assert parse_weight("0.5", 64) == 0.5
        assert parse_weight("auto", 64) == "auto"

    @pytest.mark.parametrize("text", ["4/d2", "4/D2", "1/De2", "x/D", "/D", "4/D/D"])
    def test_refuses_others(self, text):
        with pytest.raises(ValueError, match="a number over D such as '4/D'"):
            parse_weight(text, 64)
