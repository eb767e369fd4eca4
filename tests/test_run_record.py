"""What makes two runs the same run."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from ssl_views import MultiViewDataset, load_images
from ssl_views.run_record import describe_data, differences


def encoded(number):
    pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def described(numbers):
    return describe_data(
        MultiViewDataset(datasets.Dataset.from_dict({"image": [encoded(n) for n in numbers]}))
    )


class TestData:
    def test_equal_data_are_equal_and_others_are_not(self):
        found = described(range(20))
        assert found["images"] == 20
        assert found == described(range(20))
        assert found != described([*range(19), 99])
        assert found != described(range(19))
        assert found != described([1, 0, *range(2, 20)])

    def test_of_many_images_some_are_looked_at(self):
        few = [encoded(n) for n in range(8)]
        rows = [{"image": few[n % 8]} for n in range(3000)]
        read = []

        class Rows(list):
            def __getitem__(self, place):
                read.append(place)
                return super().__getitem__(place)

        assert describe_data(MultiViewDataset(Rows(rows)))["images"] == 3000
        assert len(read) == 256
        assert {0, 2999} <= set(read)

    def test_files_are_known_by_name_and_size_wherever_they_lie(self, image_folder, tmp_path):
        before = describe_data(MultiViewDataset(load_images(str(image_folder))))
        moved = image_folder.rename(tmp_path / "moved")
        assert describe_data(MultiViewDataset(load_images(str(moved)))) == before
        changed = next(moved.rglob("*.png"))
        changed.write_bytes(changed.read_bytes() + b"more")
        assert describe_data(MultiViewDataset(load_images(str(moved)))) != before

    @pytest.mark.parametrize(
        "images",
        [
            [np.zeros((4, 4), dtype=np.uint8), np.ones((4, 4), dtype=np.uint8)],
            [Image.new("L", (4, 4)), Image.new("L", (4, 4), 1)],
            [None, b"1"],
            [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}],
        ],
        ids=["arrays", "PIL", "bytes", "missing files"],
    )
    def test_rows_of_every_kind(self, images):
        first, second = (describe_data(MultiViewDataset([{"image": x}])) for x in images)
        assert first != second
        assert first == describe_data(MultiViewDataset([{"image": images[0]}]))

    def test_files_that_may_not_be_read_are_not_looked_at(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"12345")
        paths = [str(tmp_path / "a.png"), "x" * 5000, "/proc/1/root/\udce4.png", "//server/a.png"]
        rows = [{"image": {"bytes": None, "path": path}} for path in paths]
        before = describe_data(MultiViewDataset(rows))
        (tmp_path / "a.png").write_bytes(b"longer than before")
        assert describe_data(MultiViewDataset(rows)) == before

    def test_what_is_known_of_other_data(self):
        assert describe_data([1, 2, 3]) == {"images": 3}
        assert describe_data(iter([1])) == {"stream": True}


def test_differences_are_listed_by_name():
    before = {"seed": 1, "model": {"loss": "vicreg", "dims": [1, 2]}, "gone": None, "old": 2}
    now = {"seed": 1, "model": {"loss": "kernel", "dims": [1, 2]}, "new": "x" * 100}
    assert differences(before, before) == []
    assert differences(before, now) == [
        'model.loss: "vicreg" -> "kernel"',
        'new: null -> "' + "x" * 56 + "...",
        "old: 2 -> null",
    ]
