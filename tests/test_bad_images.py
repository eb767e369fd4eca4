"""Images that cannot be used: the list of them, and what takes their place."""

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from loader_cases import RECIPE, assert_same, encoded, pixels, stock, threaded
from torch.utils.data import DataLoader

from ssl_views import (
    BadImages,
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    PixelCache,
)
from ssl_views.data.bad_images import TooManyBadImages, draw_others, most_bad
from ssl_views.data.image_limits import BadImage, ImageLimits, PixelFormatError

BAD = {3, 4, 17, 29}


def members(count=40, bad=BAD):
    """Images of 12 x 12 pixels with indices of their own, some of which cannot be decoded."""
    files = [
        {
            "bytes": b"broken %d" % i if i in bad else encoded(pixels(i, (12, 12))),
            "path": f"f/{i}.png",
        }
        for i in range(count)
    ]
    files = [None if i == 17 and i in bad else file for i, file in enumerate(files)]
    return [{"image": file, "index": 1000 + i} for i, file in enumerate(files)]


def collator(bad_images=None, **options):
    bad_images = BadImages() if bad_images is None else bad_images
    return MultiViewCollator(RECIPE, seed=3, bad_images=bad_images, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def add_many(bad_images, start):
    """Add a hundred images; in a process of its own."""
    for index in range(start, start + 100):
        bad_images.add(index, None, "why")


class TestList:
    @pytest.mark.parametrize("name", [None, "deep/bad.jsonl"])
    def test_images_are_listed_once(self, tmp_path, name):
        path = None if name is None else tmp_path / name
        bad = BadImages(path)
        assert len(bad) == 0
        for index in (5, 2, 5, np.int64(2), 2**64 - 1):
            bad.add(index, f"{index}.png", "no known format")
        assert len(bad) == 3
        assert 2 in bad
        assert 3 not in bad
        if path is not None:
            assert lines(path) == [
                {"index": i, "path": f"{i}.png", "reason": "no known format"}
                for i in (5, 2, 2**64 - 1)
            ]
        bad.clear()
        assert len(bad) == 0
        assert path is None or not path.exists()
        bad.add(5, None, "again")
        assert len(bad) == 1

    def test_a_file_is_shared(self, tmp_path):
        first, second = (BadImages(tmp_path / "bad.jsonl") for _ in range(2))
        first.add(1, None, "a")
        assert 1 in second
        second.add(1, None, "b")
        second.add(2, None, "b")
        assert len(first) == len(second) == len(lines(tmp_path / "bad.jsonl")) == 2
        first.clear()
        assert len(second) == 0
        second.add(7, None, "c")
        assert 7 in first
        assert len(first) == 1

    def test_what_is_no_line_is_passed_over(self, tmp_path):
        path = tmp_path / "bad.jsonl"
        path.write_text('{"index": 1}\nhello\n[2]\n{"index": "3"}\n\n{"index": 4, "pa')
        bad, other = BadImages(path), BadImages(path)
        assert len(bad) == 1
        bad.add(5, "\udcff\n" * 400, "x" * 9999)
        assert len(bad) == len(other) == 2
        last = path.read_text().splitlines()[-1]
        assert json.loads(last)["index"] == 5
        assert len(last) < 6000  # in one write
        other.add(6, None, "y")
        assert len(bad) == 3

    def test_threads_and_processes_write_whole_lines(self, tmp_path):
        bad = BadImages(tmp_path / "bad.jsonl")
        context = multiprocessing.get_context("fork")
        started = [context.Process(target=add_many, args=(bad, start)) for start in (0, 50)]
        for process in started:
            process.start()
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda start: add_many(bad, start), (100, 150, 200)))
        for process in started:
            process.join()
        assert len(bad) == 300
        assert {line["index"] for line in lines(tmp_path / "bad.jsonl")} == set(range(300))

    def test_it_is_pickled(self, tmp_path):
        for path in (None, tmp_path / "bad.jsonl"):
            bad = BadImages(path, most=2)
            bad.add(1, None, "a")
            other = pickle.loads(pickle.dumps(bad))
            assert len(other) == 1
            other.add(2, None, "b")
            with pytest.raises(TooManyBadImages):
                other.add(3, None, "c")

    def test_too_many_get_a_sentence(self, tmp_path):
        for path, where in (
            (None, ""),
            (tmp_path / "bad.jsonl", r" All are listed in .*bad.jsonl\."),
        ):
            bad = BadImages(path, most=2)
            for _ in range(3):
                bad.add(1, None, "a")
                bad.add(2, None, "b")
            message = (
                rf"at most 2 images may be bad; got 3\. The last reason: broken\.{where} Remove or "
                "repair them, or raise the limit"
            )
            with pytest.raises(TooManyBadImages, match=message):
                bad.add(3, None, "broken")

    def test_one_of_a_hundred_may_be_bad(self):
        assert [most_bad(n) for n in (0, 100, 5000, 5100, 10**6)] == [50, 50, 50, 51, 10000]


class TestRows:
    def test_another_row_is_drawn_for_the_index_of_the_bad_one(self):
        rows = members()
        dataset = MultiViewDataset(rows, epoch=2)
        bad = BadImages()
        batch = collator(bad)(dataset.__getitems__(range(40)))["pixel_values"]
        known = set()
        for place in sorted(BAD):
            known.add(1000 + place)
            for other in (draw_others(2, 1000 + place, 8) * 40).astype(int).tolist():
                if other not in BAD:
                    break
                known.add(1000 + other)
            swapped = [{"image": rows[other]["image"], "index": 1000 + place}]
            alone = MultiViewCollator(RECIPE, 3)([MultiViewDataset(swapped, epoch=2)[0]])
            torch.testing.assert_close(batch[place], alone["pixel_values"][0], atol=1e-5, rtol=0)
        assert {i for i in range(2000) if i in bad} == known
        good = [i for i in range(40) if i not in BAD]
        expected = MultiViewCollator(RECIPE, 3)(dataset.__getitems__(good))["pixel_values"]
        torch.testing.assert_close(batch[good], expected, atol=1e-5, rtol=0)

    def test_epochs_draw_other_rows(self):
        dataset = MultiViewDataset(members())
        found = [
            dataset.pixels([3], 3, bad_images=BadImages(), epoch=epoch)[0].tensors()[0]
            for epoch in (0, 0, 1)
        ]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_every_loader_gives_the_same_batches(self, tmp_path):
        features = {"image": datasets.Image(decode=False), "index": datasets.Value("int64")}
        rows = datasets.Dataset.from_list(members(), features=datasets.Features(features))
        dataset = MultiViewDataset(rows, epoch=1)
        expected = list(stock(dataset, collator()))
        reasons = None
        for cache in (None, PixelCache.of(dataset, 3, limit_bytes=10**6)):
            same = MultiViewDataset(rows, epoch=1, cache=cache)
            for number, loader in enumerate(
                (
                    lambda bad, same=same: stock(same, collator(bad)),
                    lambda bad, same=same: stock(same, collator(bad), num_workers=2),
                    lambda bad, same=same: threaded(same, collator(bad)),
                    lambda bad, same=same: threaded(
                        same, collator(bad), loading={"num_threads": 4, "prefetch": 1}
                    ),
                )
            ):
                path = tmp_path / f"{cache is None}{number}.jsonl"
                assert_same(loader(BadImages(path)), expected)
                listed = sorted(map(str, lines(path)))
                reasons = reasons or listed
                assert listed == reasons
        assert len(reasons) == 4
        whole = list(stock(dataset, collator(), batch_size=40))
        assert_same(whole, [{"pixel_values": torch.cat([b["pixel_values"] for b in expected])}])
        place = next(line for line in reasons if "'index': 1004" in line)
        assert "'path': 'f/4.png', 'reason': 'the bytes cannot be decoded: they are no" in place

    def test_without_a_list_the_first_is_raised(self):
        dataset = MultiViewDataset(members(), epoch=0)
        cache = PixelCache.of(dataset, 3, limit_bytes=10**6)
        for same in (dataset, MultiViewDataset(dataset.rows, epoch=0, cache=cache)):
            for loader in (stock, threaded):
                with pytest.raises(
                    BadImage, match=r"image 1003 \(f/3.png\): the bytes cannot be.*Remove or rep"
                ):
                    list(loader(same))
            with pytest.raises(BadImage, match=r"image 1017: the row has no image\. Remove or rep"):
                same.pixels([17], 3)

    def test_other_pixels_always_stop(self):
        rows = members()
        rows[20]["image"] = np.zeros((12, 12, 3), dtype=np.float32)
        for loader in (stock, threaded):
            with pytest.raises(
                PixelFormatError, match=r"image 1020: pixels must be uint8.*defined\.$"
            ):
                list(loader(MultiViewDataset(rows, epoch=0), collator()))

    def test_too_many_stop(self, tmp_path):
        dataset = MultiViewDataset(members(), epoch=0)
        for loader in (stock, threaded):
            bad = BadImages(tmp_path / f"{loader.__name__}.jsonl", most=2)
            with pytest.raises(TooManyBadImages, match=r"at most 2 images may be bad; got 3\."):
                list(loader(dataset, collator(bad)))
        # Two workers may each have found one more when the first of them stops.
        for workers, count in ((1, "3"), (2, "[34]")):
            bad = BadImages(tmp_path / f"{workers}.jsonl", most=2)
            message = rf"at most 2 images may be bad; got {count}\."
            with pytest.raises(TooManyBadImages, match=message):
                list(stock(dataset, collator(bad), num_workers=workers))

    def test_eight_in_a_row_stop(self, tmp_path):
        dataset = MultiViewDataset(members(20, set(range(20)) - {0}), epoch=0)
        bad = BadImages(tmp_path / "bad.jsonl")
        with pytest.raises(
            TooManyBadImages,
            match=r"the place of image 1001, but none that was tried can be used; the last reason: "
            r"the .*bad.jsonl\. Look at the data set",
        ):
            dataset.pixels([1], 3, bad_images=bad, epoch=0)

    def test_limits_make_bad_images(self):
        rows = [{"image": pixels(i, (12, 12) if i else (9, 40))} for i in range(8)]
        dataset, bad = MultiViewDataset(rows, epoch=0), BadImages()
        list(stock(dataset, collator(bad, limits=ImageLimits(min_side=10))))
        assert len(bad) == 1
        assert 0 in bad


class TestStreams:
    def batches(self, rows, bad, loader, **options):
        stream = MultiViewIterableDataset(rows)
        iterator = iter(loader(stream, collator(bad), batch_size=20, **options))
        return [next(iterator) for _ in range(3)]

    def test_another_image_of_the_batch_takes_the_place(self):
        """Whatever part of it a thread decodes; the third batch holds two epochs."""
        rows = members(50)
        bad = BadImages()
        expected = self.batches(rows, bad, stock)
        assert len(bad) == 4
        for options in ({"num_threads": 1}, {"num_threads": 4, "prefetch": 1}):
            assert_same(self.batches(rows, BadImages(), threaded, loading=options), expected)
        assert_same(self.batches(rows, BadImages(), stock, num_workers=1), expected)

    def test_a_batch_without_a_good_image_stops(self):
        with pytest.raises(
            TooManyBadImages, match="none that was tried can be used; the last reas"
        ):
            self.batches(members(5, set(range(5))), BadImages(), stock)

    def test_without_a_list_the_first_is_raised(self):
        with pytest.raises(BadImage, match=r"image \d+ \(f/3.png\): the bytes cannot be decoded"):
            next(iter(stock(MultiViewIterableDataset(members()))))


class TestIndices:
    def test_they_are_kept(self):
        dataset = MultiViewDataset(members(), epoch=0)
        cache = PixelCache.of(dataset, 3, limit_bytes=10**6)
        keeping = collator(keep_indices=True)
        for same in (dataset, MultiViewDataset(dataset.rows, epoch=0, cache=cache)):
            for loader in (
                stock(same, keeping),
                threaded(same, keeping, loading={"num_threads": 3}),
                threaded(same, keeping, loading={"render_on_device": True, "num_threads": 2}),
                DataLoader(same, batch_size=8, collate_fn=keeping, num_workers=1),
            ):
                found = [batch["indices"] for batch in loader]
                assert all(x.dtype == torch.int64 and x.device.type == "cpu" for x in found)
                assert torch.cat(found).tolist() == [1000 + i for i in range(40)]
        assert "indices" not in next(iter(stock(dataset, collator())))

    def test_hashes_of_a_stream_keep_their_bits(self):
        stream = MultiViewIterableDataset(members(8))
        indices = [item["index"] for item, _ in zip(stream, range(8), strict=False)]
        assert max(indices) >= 2**63
        for loader in (stock, threaded):
            batch = next(iter(loader(stream, collator(keep_indices=True))))
            assert batch["indices"].numpy().view(np.uint64).tolist() == indices
