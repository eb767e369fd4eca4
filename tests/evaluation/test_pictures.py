"""Pictures show what they were given, and readers who see few colours can read them."""

import itertools
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import confusion_matrix

from ssl_views.evaluation.image_pictures import (
    draw_map,
    draw_neighbours,
    map_points,
    thumbnail_places,
)
from ssl_views.evaluation.picture_style import COLORS, MARKERS, SMALL_FONT, drawn_name, png_of
from ssl_views.evaluation.pictures import (
    draw_confusion,
    draw_effective_rank,
    draw_spectrum,
    draw_terms,
    most_confused,
)
from ssl_views.spectrum import PowerLaw, fit_power_law

STEPS = list(range(10, 401, 10))
HOSTILE = ["</script>", "a$_{$", "new\nline\x1b\u202e", "画像", "x" * 300, "_"]


def panel_of(figure):
    """The only panel of a figure, after it was drawn."""
    size = Image.open(BytesIO(png_of(figure, dpi=50))).size
    assert size[0] == 260
    (panel,) = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    return panel


def texts(artist):
    return [text.get_text().strip() for text in artist.findobj(Text) if text.get_text()]


def lines(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def in_lab(color):
    """CIE Lab of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ color / [0.9505, 1, 1.089], 0.0089, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class TestStyle:
    def test_colour_blind_readers_tell_styles_apart(self):
        # Machado, Oliveira and Fernandes (2009), severity 1.
        blindness = {
            "none": np.eye(3),
            "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
            "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        }
        linear = [np.where(c <= 0.04, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
                  for c in (np.array(to_rgb(color)) for color in COLORS)]  # fmt: skip
        for matrix in blindness.values():
            seen = [in_lab(np.clip(matrix @ color, 0, 1)) for color in linear]
            for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
                assert np.linalg.norm(a - b) > 15, (COLORS[i], COLORS[j])
        assert len(set(MARKERS)) == len(MARKERS) == len(COLORS)

    def test_names_are_short_and_printable(self):
        names = [drawn_name(label, HOSTILE, 8) for label in range(7)]
        assert names == ["</scrip…", "a$_{$", r"new\nli…", "3", "xxxxxxx…", "_", "6"]
        assert drawn_name(2, None, 8) == "2"

    def test_pictures_are_not_transparent(self):
        picture = Image.open(BytesIO(png_of(draw_terms({"loss": ([1], [2])}))))
        assert picture.mode == "RGB"
        assert picture.width == 780


class TestTerms:
    def test_each_term_has_a_panel(self):
        history = {
            "loss": (STEPS, [400.0 / step for step in STEPS]),
            "eval_loss": ([100, 200], [5.0, 3.0]),
            "redundancy": (STEPS, [2.0 + 1 / step for step in STEPS]),
            "eval_variance": ([100], [0.5]),
            "grad_norm": (STEPS, STEPS),
        }
        figure = draw_terms(history)
        assert [p.get_title(loc="left") for p in figure.axes] == ["loss", "redundancy", "variance"]
        loss, redundancy, variance = figure.axes
        for label, name in (("training", "loss"), ("test images", "eval_loss")):
            line = lines(loss)[label]
            assert (list(line.get_xdata()), list(line.get_ydata())) == history[name]
        assert loss.get_yscale() == "log"
        assert redundancy.get_yscale() == "linear"
        assert list(lines(variance)) == ["test images"]
        (legend,) = figure.legends
        assert texts(legend) == ["training", "test images"]
        styles = {(x.get_color(), x.get_marker(), x.get_linestyle()) for x in loss.get_lines()}
        assert len(styles) == 2
        assert len({x for part in zip(*styles, strict=True) for x in part}) == 6

    def test_gaps_stay_gaps(self):
        values = [1.0, None, math.nan, math.inf, 2.0]
        history = {"loss": ([1, 2, 3, 4, 5], values), "variance": ([1], [None])}
        panel = panel_of(draw_terms(history))
        drawn = lines(panel)["training"].get_ydata()
        np.testing.assert_array_equal(drawn, [1, np.nan, np.nan, np.nan, 2])

    @pytest.mark.parametrize("value", [3.0, 0.0, -1.0])
    def test_one_step(self, value):
        panel = panel_of(draw_terms({"loss": ([7], [value])}))
        assert lines(panel)["training"].get_marker() in MARKERS
        low, high = panel.get_xlim()
        assert low < 7 < high
        assert all(float(x).is_integer() for x in panel.get_xticks())

    @pytest.mark.parametrize(
        "history", [{}, {"lr": ([1], [1])}, {"loss": ([1], [None])}, {"loss": ([], [])}]
    )
    def test_nothing_to_draw(self, history):
        with pytest.raises(ValueError, match="history must hold values of loss"):
            draw_terms(history)
        with pytest.raises(ValueError, match="history must hold values of eval_effective_rank"):
            draw_effective_rank(history)


class TestEffectiveRank:
    def test_features_and_embeddings(self):
        history = {
            "eval_effective_rank": ([100, 200], [8.0, 30.0]),
            "embedding_effective_rank": (STEPS, [9.0] * 40),
        }
        panel = panel_of(draw_effective_rank(history))
        drawn = lines(panel)
        assert list(drawn) == ["features", "embeddings (training)"]
        assert list(drawn["features"].get_ydata()) == [8, 30]
        assert list(drawn["embeddings (training)"].get_ydata()) == [9] * 40
        assert panel.get_yscale() == "linear"
        assert not any("$" in text for text in texts(panel))

    def test_only_embeddings(self):
        panel = panel_of(draw_effective_rank({"embedding_effective_rank": ([1], [3.0])}))
        assert list(lines(panel)) == ["embeddings (training)"]


class TestSpectrum:
    def test_the_line_is_the_power_law(self):
        eigenvalues = 7 * torch.arange(1, 301, dtype=torch.float64) ** -1.25
        panel = panel_of(draw_spectrum(eigenvalues, fit_power_law(eigenvalues)))
        line = lines(panel)["power law"]
        ranks = np.array([4, 100])
        np.testing.assert_allclose(line.get_xdata(), ranks)
        np.testing.assert_allclose(line.get_ydata(), 7 * ranks**-1.25)
        np.testing.assert_allclose(lines(panel)["eigenvalues"].get_ydata(), eigenvalues)
        assert "alpha = 1.25, ranks 4 to 100, R2 = 1.00" in texts(panel)
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")

    def test_without_a_law(self):
        panel = panel_of(draw_spectrum(torch.tensor([3.0, 1e-3, 1e-12, 0.0]), None))
        assert list(lines(panel)) == ["eigenvalues"]
        assert len(lines(panel)["eigenvalues"].get_xdata()) == 2

    def test_collapsed_features(self):
        with pytest.raises(ValueError, match="must have a positive eigenvalue"):
            draw_spectrum(torch.zeros(5), PowerLaw(1, 0, 1, 4, 10))


class TestConfusion:
    @pytest.fixture
    def classes(self, generator):
        labels = torch.randint(0, 5, (400,), generator=generator)
        other = torch.randint(0, 5, (400,), generator=generator)
        return labels, torch.where(other < 3, labels, other)

    def test_numbers(self, classes):
        labels, predicted = classes
        names = ["a", "b", "c", "d", "e"]
        panel = panel_of(draw_confusion(labels, predicted, names))
        expected = 100 * confusion_matrix(labels, predicted, normalize="true")
        (image,) = panel.get_images()
        np.testing.assert_allclose(image.get_array(), expected)
        written = {(t.get_position()[::-1]): t.get_text() for t in panel.texts}
        rounded = {k: f"{v:.0f}" for k, v in np.ndenumerate(expected) if v >= 0.5}
        assert written == rounded
        assert [t.get_text() for t in panel.get_xticklabels()] == names
        assert [t.get_text() for t in panel.get_yticklabels()] == names

    def test_classes_that_are_never_true_or_have_no_name(self):
        panel = panel_of(draw_confusion(torch.tensor([0, 7]), torch.tensor([9, 7]), ["a"]))
        assert [t.get_text() for t in panel.get_yticklabels()] == ["a", "7", "9"]
        np.testing.assert_allclose(
            panel.get_images()[0].get_array(), [[0, 0, 100], [0, 100, 0], [0, 0, 0]]
        )

    def test_of_many_classes_those_with_most_errors_are_shown(self):
        labels = torch.arange(30).repeat_interleave(10)
        wrong = torch.arange(300) % 10 < labels % 3  # 0, 1 or 2 of the ten of each class
        panel = panel_of(draw_confusion(labels, torch.where(wrong, (labels + 1) % 30, labels)))
        shown = [int(t.get_text()) for t in panel.get_yticklabels()]
        assert shown == [label for label in range(30) if label % 3]
        assert not panel.texts
        assert "20 of 30 classes" in panel.get_xlabel()
        assert panel.get_images()[0].get_array()[0, :2].tolist() == [90, 10]

    def test_hostile_names(self):
        panel = panel_of(draw_confusion(torch.arange(6), torch.arange(6), HOSTILE))
        expected = [drawn_name(label, HOSTILE, 16) for label in range(6)]
        assert [t.get_text() for t in panel.get_yticklabels()] == expected

    def test_most_confused(self, classes):
        labels, predicted = classes
        matrix = confusion_matrix(labels, predicted)
        found = most_confused(labels, predicted, ["a", "b", "c", "d", "e"], num=100)
        assert len(found) == (matrix - np.diag(matrix.diagonal()) > 0).sum()
        counts = []
        for true, other, share in found:
            row, column = "abcde".index(true), "abcde".index(other)
            counts.append(matrix[row, column])
            assert share == pytest.approx(matrix[row, column] / matrix[row].sum())
        assert counts == sorted(counts, reverse=True)
        assert most_confused(labels, labels) == []
        assert len(most_confused(labels, predicted)) == 5

    def test_labels_and_predictions_belong_together(self):
        with pytest.raises(ValueError, match="one class per image"):
            draw_confusion(torch.zeros(3).long(), torch.zeros(2).long())
        with pytest.raises(ValueError, match=r"got shapes \(0,\)"):
            most_confused(torch.zeros(0).long(), torch.zeros(0).long())


def pixels(height, width, channels=3, value=100):
    return np.full((height, width, channels), value, dtype=np.uint8)


class TestNeighbours:
    rows = (
        (pixels(4, 4), [pixels(8, 2), pixels(4, 4, 1), pixels(4, 4, 5)]),
        (pixels(1, 9, 2), [pixels(4, 4)]),
    )

    def test_frames_and_marks_say_whether_the_class_agrees(self):
        labels = [(0, [0, 1, 2]), (1, [1])]
        panel = panel_of(draw_neighbours(self.rows, labels, ["cat", "dog", "automobile"]))
        assert len(panel.get_images()) == 6
        frames = [p for p in panel.patches if isinstance(p, Rectangle)]
        colors = [to_hex(frame.get_edgecolor()).upper() for frame in frames]
        assert colors == [COLORS[0], COLORS[1], COLORS[1], COLORS[0]]
        assert len({frame.get_linestyle() for frame in frames}) == 2
        written = texts(panel)
        assert [t for t in written if t in "✓✗"] == ["✓", "✗", "✗", "✓"]
        assert [written.count(name) for name in ("cat", "dog", "automobile")] == [2, 3, 1]

    def test_images_keep_their_proportions(self):
        panel = panel_of(draw_neighbours(self.rows))
        tall = panel.get_images()[1]
        left, right, bottom, top = tall.get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(4)
        shapes = [image.get_array().shape[-1] for image in panel.get_images()]
        assert shapes == [3] * 6

    def test_without_labels_or_names(self):
        panel = panel_of(draw_neighbours(self.rows))
        assert not panel.patches
        assert texts(panel) == ["test image", "nearest training images"]
        panel = panel_of(draw_neighbours(self.rows, [(0, [0, 1, 2]), (1, [1])]))
        assert texts(panel)[2:] == ["✓", "✗", "✗", "✓"]

    def test_hostile_names(self):
        labels = [(place, [5 - place]) for place in range(6)]
        rows = [(pixels(4, 4), [pixels(4, 4)])] * 6
        for text in texts(panel_of(draw_neighbours(rows, labels, HOSTILE)))[2:]:
            assert text.isprintable()
            assert len(text) <= 10

    def test_no_rows(self):
        with pytest.raises(ValueError, match="at least one image"):
            draw_neighbours([])


class TestMap:
    def test_two_clusters_stay_apart(self, generator):
        features = torch.randn(80, 60, generator=generator) * 0.1
        features[::2, 0] += 5
        features[1::2, 1] += 5
        points, places = map_points(features)
        assert places.tolist() == list(range(80))
        first, second = points[::2], points[1::2]
        apart = (first.mean(dim=0) - second.mean(dim=0)).norm()
        for cluster in (first, second):
            assert apart > 2 * (cluster - cluster.mean(dim=0)).norm(dim=1).max()
        assert torch.equal(points, map_points(features).points)

    def test_rows_are_chosen(self, generator):
        features = torch.randn(40, 8, generator=generator)
        found = map_points(features, num_most=12)
        assert found.points.shape == (12, 2)
        assert found.places.tolist() == sorted(set(found.places.tolist()))
        assert not torch.equal(found.places, map_points(features, seed=1, num_most=12).places)

    @pytest.mark.parametrize(
        "features",
        [torch.ones(20, 8), torch.zeros(20, 8), torch.randn(5, 1), torch.eye(2).repeat(10, 1)],
        ids=["collapsed", "zero", "one dimension", "repeated"],
    )
    def test_poor_features(self, features):
        points = map_points(features).points
        assert points.shape == (len(features), 2)
        assert points.isfinite().all()
        panel_of(draw_map(points))

    def test_too_few_images(self):
        with pytest.raises(ValueError, match="at least 5 images; got 4"):
            map_points(torch.randn(4, 8))

    def test_classes_have_a_colour_and_a_marker(self, generator):
        points = torch.randn(140, 2, generator=generator)
        figure = draw_map(points, torch.arange(140) % 14, [f"class {i}" for i in range(14)])
        panel = panel_of(figure)
        styles = {
            (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
            for c in panel.collections
        }
        assert len(panel.collections) == len(styles) == 14
        assert texts(figure.legends[0]) == [f"class {i}" for i in range(14)]
        assert sum(len(c.get_offsets()) for c in panel.collections) == 140

    def test_rare_classes_are_grey(self, generator):
        labels = torch.cat([torch.arange(20), torch.arange(14).repeat(3)])
        figure = draw_map(torch.randn(len(labels), 2, generator=generator), labels)
        panel = panel_of(figure)
        assert texts(figure.legends[0]) == [*map(str, range(14)), "6 other classes"]
        assert len(panel.collections[-1].get_offsets()) == 6

    def test_hostile_names(self):
        figure = draw_map(torch.rand(12, 2), torch.arange(12) % 6, HOSTILE)
        panel_of(figure)
        named = texts(figure.legends[0])
        assert named == [drawn_name(label, HOSTILE, 16) for label in range(6)]
        assert all(name.isprintable() for name in named)

    def test_thumbnails_are_at_their_points_and_far_enough_apart(self, generator):
        points = torch.randn(500, 2, generator=generator)
        chosen = thumbnail_places(points)
        assert 20 < len(chosen) <= 100
        assert len(set(chosen)) == len(chosen)
        low, high = points.amin(0), points.amax(0)
        cells = ((points - (low + high) / 2) / (high - low).max() * 10).floor().clamp(-5, 4)
        for some in (cells, cells[chosen]):
            assert len(some.unique(dim=0)) == len(chosen)
        images = {place: pixels(4, 4) for place in chosen}
        panel = panel_of(draw_map(points, thumbnails=images))
        shown = [np.array(image.get_extent()) for image in panel.get_images()]
        assert len(shown) == len(chosen)
        offsets = np.asarray(panel.collections[0].get_offsets())
        for place, extent in zip(chosen, shown, strict=True):
            np.testing.assert_allclose(extent.reshape(2, 2).mean(axis=1), offsets[place], atol=1e-6)

    def test_one_point(self):
        assert thumbnail_places(torch.ones(7, 2)) == [0]


def test_letters_are_large_enough():
    labels = torch.arange(25)
    figures = [
        draw_terms({"loss": ([1, 2], [1, 20])}),
        draw_effective_rank({"eval_effective_rank": ([1, 2], [1, 20])}),
        draw_spectrum(torch.arange(1, 50) ** -1.0, PowerLaw(1, 0, 1, 4, 49)),
        draw_confusion(labels, labels.flip(0)),
        draw_neighbours(TestNeighbours.rows, [(0, [0, 1, 2]), (1, [1])], ["a", "b", "c"]),
        draw_map(torch.rand(25, 2), labels),
    ]
    for figure in figures:
        png_of(figure)
        sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text()]
        assert min(sizes) >= SMALL_FONT
