"""Drawn numbers against torchvision's own sampling, and what they may depend on."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, chisquare, ks_2samp
from torchvision.transforms import (
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from torchvision.transforms.v2 import RandomSolarize

from ssl_views import ViewRecipe

COUNT = 100_000
LEAST = 0.001  # p value; the seeds are fixed, so this never fails by chance
RECIPE = ViewRecipe(
    image_size=8,
    num_views=2,
    crop_scale=(0.08, 1.0),
    flip_prob=0.5,
    jitter_prob=0.8,
    brightness=0.4,
    contrast=0.3,
    saturation=0.2,
    hue=0.1,
    grayscale_prob=0.2,
    blur_prob=0.5,
    solarize_prob=0.1,
)
# height, width, crops drawn with torchvision, whose tries often fail on the last two
IMAGES = {"400x300": (400, 300, COUNT), "30x300": (30, 300, 20_000), "300x30": (300, 30, 20_000)}
QUANTITIES = ("top", "left", "height", "width", "area", "ratio")


def draw(recipe, size, seed, count=COUNT, **options):
    images = count // recipe.num_views
    height, width = size
    return recipe.draw(
        range(images), [height] * images, [width] * images, seed=seed, **{"epoch": 0, **options}
    )


def quantities(box):
    top, left, height, width = box.astype(float).T
    return dict(
        zip(QUANTITIES, (top, left, height, width, height * width, width / height), strict=True)
    )


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES)
def crops(request):
    """Boxes of one image size: ours and torchvision's."""
    height, width, count = request.param
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            RandomResizedCrop.get_params(image, RECIPE.crop_scale, RECIPE.crop_ratio)
            for _ in range(count)
        ]
    ours = draw(RECIPE, (height, width), seed=1).box.reshape(-1, 4)
    return quantities(ours), quantities(np.array(theirs))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_crops_have_torchvisions_distribution(crops, quantity):
    ours, theirs = crops
    assert len(ours[quantity]) == COUNT
    assert ks_2samp(ours[quantity], theirs[quantity]).pvalue > LEAST


def test_as_many_crops_as_torchvisions_are_the_largest_centred_one(crops):
    """Those whose ten tries failed; in a wide image, all have one height and width."""
    ours, theirs = crops
    shapes = [np.stack([q["height"], q["width"], q["top"], q["left"]], -1) for q in (ours, theirs)]
    values, counts = np.unique(shapes[1], axis=0, return_counts=True)
    commonest = values[counts.argmax()]
    table = [
        [int((shape == commonest).all(-1).sum()), int((shape != commonest).any(-1).sum())]
        for shape in shapes
    ]
    assert chi2_contingency(table).pvalue > LEAST
    if theirs["height"].max() == 30:  # 30 x 300: more than half
        assert table[1][0] > sum(table[1]) / 2


def test_crops_lie_at_every_place_equally_often():
    """In a small image, where one place more or less matters."""
    box = draw(replace(RECIPE, crop_ratio=(0.5, 2.0)), (12, 9), seed=3).box.reshape(-1, 4)
    tested = 0
    for axis, whole in ((0, 12), (1, 9)):
        for length in range(2, whole):
            places = box[box[:, 2 + axis] == length, axis]
            if len(places) > 2000:
                counts = np.bincount(places, minlength=whole - length + 1)
                assert chisquare(counts).pvalue > LEAST / 10, (axis, length)
                tested += 1
    assert tested > 10


@pytest.fixture(scope="module")
def jitters():
    """Of torchvision: orders (N, 4) and factors (N, 4)."""
    jitter = ColorJitter(RECIPE.brightness, RECIPE.contrast, RECIPE.saturation, RECIPE.hue)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [ColorJitter.get_params(*ranges) for _ in range(COUNT)]
    orders = torch.stack([order for order, *_ in drawn]).numpy()
    return orders, np.array([factors for _, *factors in drawn])


@pytest.fixture(scope="module")
def drawn():
    """Our records of 100,000 views, flat."""
    records = draw(RECIPE, (400, 300), seed=2)
    return {name: array.reshape(COUNT, *array.shape[2:]) for name, array in vars(records).items()}


@pytest.mark.parametrize("operation", range(4))
def test_factors_have_torchvisions_distribution(drawn, jitters, operation):
    assert ks_2samp(drawn["factor"][:, operation], jitters[1][:, operation]).pvalue > LEAST


def test_orders_have_torchvisions_distribution(drawn, jitters):
    ours = drawn["order"]
    ours = ours[(ours >= 0).all(axis=-1)]
    assert len(ours) > 0.7 * COUNT
    places = {order: i for i, order in enumerate(permutations(range(4)))}
    counts = [
        np.bincount([places[tuple(row)] for row in orders.tolist()], minlength=24)
        for orders in (ours, jitters[0])
    ]
    assert chisquare(counts[0]).pvalue > LEAST
    assert chi2_contingency(counts).pvalue > LEAST


def test_colors_are_all_jittered_or_none(drawn):
    used = (drawn["order"] >= 0).sum(axis=-1)
    assert set(np.unique(used)) == {0, 4}


def test_blur_sigmas_have_torchvisions_distribution(drawn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blur = GaussianBlur(3, RECIPE.blur_sigma)
        theirs = [blur.get_params(*blur.sigma) for _ in range(COUNT)]
    ours = drawn["blur_sigma"]
    assert ks_2samp(ours[ours > 0], theirs).pvalue > LEAST


def changes(transform):
    """How often a transform of torchvision changes an image."""
    image = torch.tensor([[[0.0, 0.9]], [[0.3, 0.2]], [[0.1, 0.5]]])
    return sum(not torch.equal(transform(image), image) for _ in range(5000))


@pytest.mark.parametrize(
    ("name", "rate", "transform"),
    [
        ("flip", RECIPE.flip_prob, RandomHorizontalFlip(RECIPE.flip_prob)),
        ("jitter", RECIPE.jitter_prob, None),
        ("grayscale", RECIPE.grayscale_prob, RandomGrayscale(RECIPE.grayscale_prob)),
        ("blur", RECIPE.blur_prob, None),
        ("solarize", RECIPE.solarize_prob, RandomSolarize(0.5, RECIPE.solarize_prob)),
    ],
)
def test_rates_are_those_of_the_recipe_and_of_torchvision(drawn, name, rate, transform):
    chosen = {
        "jitter": drawn["order"][:, 0] >= 0,
        "blur": drawn["blur_sigma"] > 0,
    }.get(name, drawn.get(name))
    assert binomtest(int(chosen.sum()), COUNT, rate).pvalue > LEAST
    if transform is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = changes(transform)
        table = [[int(chosen.sum()), int((~chosen).sum())], [theirs, 5000 - theirs]]
        assert chi2_contingency(table).pvalue > LEAST


@pytest.mark.parametrize(("prob", "always"), [(0.0, False), (1.0, True)])
def test_certain_choices_are_certain(prob, always):
    probs = ("flip_prob", "jitter_prob", "grayscale_prob", "blur_prob", "solarize_prob")
    records = draw(replace(RECIPE, **dict.fromkeys(probs, prob)), (20, 20), seed=0, count=20_000)
    for chosen in (records.flip, records.grayscale, records.solarize, records.blur_sigma > 0):
        assert (chosen == always).all()
    assert ((records.order >= 0) == always).all()


def test_nothing_that_is_drawn_tells_about_anything_else(drawn):
    columns = [drawn[name].astype(float) for name in ("flip", "grayscale", "solarize")]
    columns += [*drawn["factor"].T, drawn["blur_sigma"], drawn["order"][:, 0] >= 0]
    columns += [drawn["order"][:, 0] == 0, drawn["order"][:, 1] == 1]
    crop = quantities(drawn["box"])
    columns += [crop["area"], np.log(crop["ratio"])]
    columns += [
        (crop["top"] + 0.5) / (401 - crop["height"]),
        (crop["left"] + 0.5) / (301 - crop["width"]),
    ]
    table = np.stack(columns)
    views = table.reshape(len(table), -1, 2)
    order_terms = {(8, 9), (8, 10), (9, 10)}  # parts of one order do depend on each other
    for pairs, name in (
        ((table, table), "of one view"),
        ((views[..., 0], views[..., 1]), "of two views"),
        ((views[:, :-1, 0], views[:, 1:, 0]), "of neighbours"),
    ):
        a, b = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in pairs)
        correlation = a @ b.T / a.shape[1] * np.sqrt(a.shape[1])  # standard normal
        for i, j in np.ndindex(correlation.shape):
            if name == "of one view" and (i == j or tuple(sorted((i, j))) in order_terms):
                continue
            if name == "of one view" and {i, j} <= {11, 12, 13, 14}:
                continue  # area and ratio are limited by the image together
            assert abs(correlation[i, j]) < 5, (name, i, j)


def test_factors_of_operations_without_strength_change_nothing():
    recipe = replace(RECIPE, contrast=0.0, hue=0.0, jitter_prob=1.0, brightness=1.5)
    records = draw(recipe, (20, 20), seed=0, count=20_000)
    assert set(np.unique(records.order)) == {-1, 0, 2}
    assert ((records.order >= 0).sum(axis=-1) == 2).all()
    assert (records.factor[..., 1] == 1).all()
    assert (records.factor[..., 3] == 0).all()
    brightness = records.factor[..., 0]  # from max(0, 1 - 1.5)
    assert 0 <= brightness.min() < 0.01
    assert 2.49 < brightness.max() <= 2.5


def test_crops_that_never_fit_are_torchvisions():
    rng = np.random.default_rng(0)
    recipe = replace(RECIPE, crop_scale=(1.0, 1.0))
    sizes = [(h, w) for h, w in rng.integers(1, 400, (3000, 2)).tolist() if not 0.74 < w / h < 1.34]
    assert len(sizes) > 1000
    box = recipe.draw(range(len(sizes)), *zip(*sizes, strict=True), epoch=0).box
    for i, (height, width) in enumerate(sizes):
        image = torch.empty(1, height, width)
        theirs = RandomResizedCrop.get_params(image, recipe.crop_scale, recipe.crop_ratio)
        if min(theirs[2:]) > 0:  # torchvision rounds down to nothing
            assert box[i].tolist() == [list(theirs)] * 2, (height, width)


def test_boxes_lie_inside_images_of_every_size():
    sizes = np.array([(h, w) for h in range(1, 401) for w in {1, 2, h, 401 - h, 400, h * 7 % 397}])
    sizes = sizes[(sizes > 0).all(axis=1)]
    for recipe in (
        RECIPE,
        ViewRecipe.named("global_local"),
        replace(RECIPE, crop_scale=(1e-6, 1e-3), crop_ratio=(0.01, 100)),
        replace(RECIPE, crop_scale=(0.9, 1.0), crop_ratio=(3.0, 4.0)),
    ):
        box = recipe.draw(range(len(sizes)), *sizes.T, epoch=0).box
        assert (box[..., :2] >= 0).all()
        assert (box[..., 2:] >= 1).all()
        assert (box[..., :2] + box[..., 2:] <= sizes[:, None]).all()


def assert_same(a, b):
    for name, array in vars(a).items():
        assert np.array_equal(array, getattr(b, name)), name


@pytest.mark.parametrize("recipe", [RECIPE, ViewRecipe.named("global_local")], ids=["one", "many"])
def test_records_depend_on_the_image_alone(recipe):
    rng = np.random.default_rng(0)
    index = rng.permutation(10_000)[:200]
    sizes = np.stack([rng.integers(1, 100, 200), rng.integers(1, 100, 200)])
    together = recipe.draw(index, *sizes, epoch=3, seed=4)
    order = rng.permutation(200)
    assert_same(
        recipe.draw(index[order], *sizes[:, order], epoch=3, seed=4), together.images(order)
    )
    assert_same(
        recipe.draw(index[:31], *sizes[:, :31], epoch=3, seed=4), together.images(range(31))
    )
    for i in range(0, 200, 10):
        alone = recipe.draw(index[i : i + 1], *sizes[:, i : i + 1], epoch=3, seed=4)
        assert_same(alone, together.images([i]))
    twice = recipe.draw([7, 7], [20, 20], [30, 30], epoch=3, seed=4)
    assert_same(twice.images([0]), twice.images([1]))


@pytest.mark.parametrize("recipe", [RECIPE, ViewRecipe.named("global_local")], ids=["one", "many"])
def test_more_views_leave_the_first_ones_as_they_were(recipe):
    sizes = [[30, 400, 7] * 20, [300, 300, 9] * 20]
    few = recipe.draw(range(60), *sizes, epoch=0)
    more = replace(recipe, num_views=recipe.num_views + 5)
    assert_same(more.draw(range(60), *sizes, epoch=0).views(range(recipe.num_views)), few)


def test_every_part_of_the_key_changes_the_records():
    base = draw(RECIPE, (50, 60), seed=1, count=2000)
    others = {
        "seed": draw(RECIPE, (50, 60), seed=2, count=2000),
        "epoch": draw(RECIPE, (50, 60), seed=1, count=2000, epoch=1),
        "swapped": draw(RECIPE, (50, 60), seed=0, count=2000, epoch=1),
        "index": RECIPE.draw(range(1, 1001), [50] * 1000, [60] * 1000, epoch=0, seed=1),
        "large index": RECIPE.draw(
            range(2**32, 2**32 + 1000), [50] * 1000, [60] * 1000, epoch=0, seed=1
        ),
        "view": base.views([1, 0]),
    }
    for name, other in others.items():
        assert (other.factor == base.factor).mean() < 0.01, name
        assert (other.box == base.box).all(axis=-1).mean() < 0.01, name


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg", "global_local"])
def test_per_view_recipes_draw_what_they_say(name):
    recipe = ViewRecipe.named(name)
    records = draw(recipe, (400, 300), seed=5, count=20_000 * recipe.num_views)
    count = len(records.flip)
    assert count == 20_000
    blurred = (records.blur_sigma > 0).sum(axis=0).tolist()
    solarized = records.solarize.sum(axis=0).tolist()
    local = recipe.num_views - 2
    for v, (blur, solarize) in enumerate([(1.0, 0.0), (0.1, 0.2)] + [(0.5, 0.0)] * local):
        assert binomtest(blurred[v], count, blur).pvalue > LEAST
        assert binomtest(solarized[v], count, solarize).pvalue > LEAST
        for chosen, prob in (
            (records.flip, 0.5),
            (records.order[..., 0] >= 0, 0.8),
            (records.grayscale, 0.2),
        ):
            assert binomtest(int(chosen[:, v].sum()), count, prob).pvalue > LEAST
        strength = (0.4, 0.4, 0.2, 0.1)
        off = np.abs(records.factor[:, v] - [1, 1, 1, 0]).max(axis=0)
        assert off == pytest.approx(strength, rel=1e-3)
    area = records.box[..., 2] * records.box[..., 3] / (400 * 300)
    low = [0.4, 0.4] if local else [0.08, 0.08]
    high = [1.0, 1.0] + [0.4] * local
    assert area.min(axis=0) == pytest.approx(low + [0.05] * local, abs=0.01)
    assert (area.max(axis=0) <= np.array(high) + 0.01).all()
    assert (area.max(axis=0) > np.array(high) * 0.9).all()


def test_recipes_of_views_and_groups_of_sizes():
    pair = ViewRecipe.named("barlow_twins")
    assert [r.blur_prob for r in pair.of_views] == [1.0, 0.1]
    assert [r.solarize_prob for r in pair.of_views] == [0.0, 0.2]
    assert pair.groups == (((0, 1), 224, 23),)
    assert ViewRecipe.named("vicreg") == pair
    four = replace(pair, num_views=5)
    assert [r.blur_prob for r in four.of_views] == [1.0, 0.1, 1.0, 0.1, 1.0]
    crops = ViewRecipe.named("global_local")
    assert crops.groups == (((0, 1), 224, 23), ((2, 3, 4, 5, 6, 7), 96, 9))
    assert [r.relative_size for r in crops.of_views] == [1.0, 1.0] + [96 / 224] * 6
    assert [r.crop_scale for r in crops.of_views] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 6
    assert all(r.per_view == () for r in crops.of_views)
    assert RECIPE.of_views == (RECIPE, RECIPE)
    assert RECIPE.groups == (((0, 1), 8, 1),)
    assert replace(crops, num_views=3).groups == (((0, 1), 224, 23), ((2,), 96, 9))
    small = replace(crops, image_size=1)
    assert small.groups == ((tuple(range(8)), 1, 1),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_view": ({"blur_pro": 1.0},)}, "per_view may hold .*got 'blur_pro'.*'blur_prob'"),
        ({"per_view": ({"num_views": 3},)}, "per_view may hold .*got 'num_views'"),
        ({"per_view": ({"image_size": 3},)}, "All views share the others"),
        ({"per_view": ({"blur_prob": 2.0},)}, r"blur_prob must be in \[0, 1\]; got 2.0"),
        ({"relative_size": 0.0}, r"relative_size must be in \(0, 1\]; got 0.0"),
        ({"relative_size": 1.5}, r"relative_size must be in \(0, 1\]; got 1.5"),
        (
            {"num_views": 3, "per_view": tuple({"relative_size": s} for s in (1.0, 0.5, 0.25))},
            r"two sizes, of global and local crops; got \[\(8, 1\), \(4, 1\), \(2, 1\)\]",
        ),
        ({"blur_kernel_size": 17}, "must be odd and below 2 . image_size = 16; got 17"),
    ],
)
def test_wrong_recipes_of_views_get_a_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_sizes_and_indices_must_match():
    with pytest.raises(ValueError, match="got 2 indices, 1 heights and 2 widths"):
        RECIPE.draw([0, 1], [5], [5, 5], epoch=0)
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\); got -1"):
        RECIPE.draw([0], [5], [5], epoch=-1)
    with pytest.raises(ValueError, match=r"views of one tensor must have one size.*render_groups"):
        ViewRecipe.named("global_local").views([torch.zeros(3, 9, 9).byte()], [0], epoch=0)


def test_recipes_are_equal_and_hash_alike():
    for name in ("cifar", "global_local"):
        assert ViewRecipe.named(name) == ViewRecipe.named(name)
        assert len({ViewRecipe.named(name), ViewRecipe.named(name)}) == 1
