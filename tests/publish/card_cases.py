"""Facts of encoders whose cards are tested, and texts that try to break out of a card."""

from dataclasses import replace

from ssl_views.card_facts import CardDetails, CardFacts
from ssl_views.card_parts import CostFacts, EncoderFacts, RecipeFacts, TrainingFacts

ENCODER = EncoderFacts(
    architecture="resnet18",
    model_args={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]},
    num_parameters=1_234_567,
    num_features=256,
    input_size=(3, 64, 64),
    mean=(0.491401, 0.482200, 0.446500),
    std=(0.202300, 0.199400, 0.201000),
    interpolation="bilinear",
)
RECIPE = RecipeFacts(
    initial_weights=None,
    num_views=4,
    image_size=32,
    upscale=2,
    recipe="cifar",
    recipe_args={"crop_scale": [0.25, 1.0]},
    loss="kernel",
    loss_args={},
    projector_dim=128,
    projector_hidden_dims=(512, 256),
    orthogonality_weight=0.5,
)
TRAINING = TrainingFacts(
    finished=True,
    steps=1170,
    planned_steps=1170,
    images=50_000,
    images_per_step=256,
    epochs=6.0,
    images_seen=299_520,
    seeds=(17,),
    optimizer="adamw_torch_fused",
    learning_rate=0.005,
    schedule="cosine",
    warmup_steps=0.1,
    weight_decay=0.05,
    precision="bf16",
)
COST = CostFacts(
    kind="cuda",
    device="NVIDIA H200",
    num_devices=8,
    processes=8,
    seconds=905.4,
    images_per_second=330.9,
    versions={"python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31", "ssl_views": "0.1.0"},
)
EVALUATION = {
    "effective_rank": 152.243,
    "alpha": 1.2345,
    "alpha_r_squared": 0.987,
    "alpha_ranks": [4, 100],
    "lidar": 88.25,
    "view_invariance": 0.534,
    "knn": 0.5657,
    "linear_probe": 0.5691,
    "linear_probe_weight_decay": 0.01,
    "few_labels": {"0.01": {"mean": 0.312, "low": 0.295, "high": 0.329, "n": 5}},
    "feature_dim": 256,
    "num_train": 50_000,
    "num_test": 10_000,
    "data": "uoft-cs/cifar10",
    "protocol": {
        "features": "one clean view",
        "feature_views": 1,
        "precision": "float32",
        "k": 20,
        "temperature": 0.1,
        "compared_views": 4,
        "view_images": 512,
    },
    "eigenspectrum": [round(10 * rank**-1.2345, 6) for rank in range(1, 257)],
}
DETAILS = CardDetails(
    license="cc-by-4.0",
    data="The 50,000 training images of CIFAR-10.",
    datasets=("uoft-cs/cifar10",),
    evaluation_data="the 10,000 test images of CIFAR-10",
    title="someone/thin-resnet18-cifar10",
    limits="Not for photographs of people.",
)
EVALUATED = CardFacts(
    encoder=ENCODER,
    recipe=RECIPE,
    training=TRAINING,
    cost=COST,
    evaluation=EVALUATION,
    versions={"ssl_views": "0.1.0"},
    details=DETAILS,
)
NOT_EVALUATED = CardFacts(
    encoder=replace(
        ENCODER,
        architecture="my_resnet",
        model_args={},
        input_size=(5, 64, 64),
        mean=(0.5,) * 5,
        std=(0.25,) * 5,
        needs="my_package.models",
    ),
    recipe=replace(RECIPE, upscale=1, initial_weights="someone/earlier", orthogonality_weight=None),
    training=replace(TRAINING, finished=False, steps=400, images=None, seeds=()),
    versions={"ssl_views": "0.1.0"},
)

HOSTILE = {
    "newlines": "a\n\n# heading\n- item\r\n> quote\u2028more",
    "front matter": "x\n---\nlicense: mit\n---\n",
    "dashes": "--- ... --- key: value, [1, 2], {a: b} # comment",
    "backticks": "`code` ``` ~~~ \n```python\nimport os\n```",
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)> &lt;b&gt; &#60;i&#62;",
    "link": "[x](javascript:alert(1)) ![p](https://example.org/p.png) [r]: http://x",
    "pipes": "a | b || c \\| d \\",
    "jinja": "{{ 7*7 }} {% for x in y %} {# no #} ${HOME} $$x$$",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "yaml tags": "!!python/object/apply:os.system ['true'] &a *a %TAG",
    "control": "a\x00b\x07c\x1b[31md\x7f\x85",
    "bidi": "a\u202eb\u2066c\u200bd\ufeff",
    "surrogate": "a\udc80b",
    "long": "word " * 5000,
    "one long word": "x" * 50_000,
    "quotes": "'\"' \"'\" \\n \\",
}
