"""One small architecture of every family of timm, and those that the loaders cannot load.

A family is a module of `timm.list_modules()`. `cases()` gives those of the installed timm, and all
of its `test_*` architectures.
"""

from typing import Any, NamedTuple

import timm
from packaging.version import Version

LOADERS = ("timm", "transformers")


class Case(NamedTuple):
    """An architecture, made smaller where it takes arguments for it."""

    architecture: str
    model_args: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    image_size: int = 64


# The smallest architecture of each family, and the smallest image it takes from 64 pixels on.
FAMILIES = {
    "beit": Case("beit_base_patch16_224", {"embed_dim": 192, "depth": 3, "num_heads": 3}),
    "byoanet": Case("eca_botnext26ts_256"),
    "byobnet": Case("mobileone_s1"),
    "cait": Case("cait_xxs24_224", {"embed_dim": 96, "depth": 2, "num_heads": 2}),
    "coat": Case("coat_lite_tiny"),
    "convit": Case("convit_tiny"),
    "convmixer": Case("convmixer_768_32"),
    "convnext": Case("convnext_zepto_rms"),
    "cpubone": Case("cpubone_nano"),
    "crossvit": Case("crossvit_tiny_240", {}, 240),
    "csatv2": Case("csatv2", {}, 128),
    "cspnet": Case("cs3darknet_focus_s"),
    "cspnext": Case("cspnext_tiny"),
    "davit": Case(
        "davit_tiny",
        {"depths": [1, 1, 2, 1], "embed_dims": [24, 48, 96, 192], "num_heads": [1, 2, 4, 8]},
    ),
    "deepseek_vit": Case("deepseek_vit_412m", {"embed_dim": 128, "depth": 2, "num_heads": 2}, 126),
    "deit": Case("deit_tiny_patch16_224"),
    "densenet": Case("densenet121"),
    "dla": Case("dla46x_c"),
    "dpn": Case("dpn48b"),
    "edgenext": Case("edgenext_xx_small"),
    "efficientformer": Case("efficientformer_l1", {}, 224),
    "efficientformer_v2": Case("efficientformerv2_s0"),
    "efficientnet": Case("mobilenetv2_035"),
    "efficientvim": Case("efficientvim_m1"),
    "efficientvit_mit": Case("efficientvit_b0"),
    "efficientvit_msra": Case("efficientvit_m0", {}, 96),
    "eva": Case("eva02_tiny_patch14_224", {}, 70),
    "fasternet": Case("fasternet_t0"),
    "fastvit": Case("fastvit_t8"),
    "focalnet": Case("focalnet_tiny_srf"),
    "gcvit": Case("gcvit_xxtiny"),
    "gemma4_vit": Case(
        "gemma4_vit_167m",
        {"embed_dim": 128, "depth": 2, "num_heads": 2, "intermediate_size": 256},
    ),
    "ghostnet": Case("ghostnet_050"),
    "hardcorenas": Case("hardcorenas_b"),
    "hgnet": Case("hgnetv2_b0"),
    "hiera": Case("hiera_tiny_224", {"embed_dim": 24, "stages": [1, 1, 2, 1]}),
    "hieradet_sam2": Case(
        "sam2_hiera_tiny",
        {"embed_dim": 24, "stages": [1, 1, 2, 1], "global_att_blocks": [3]},
    ),
    "hrnet": Case("hrnet_w18_small"),
    "iformer": Case("iformer_t"),
    "inception_next": Case("inception_next_atto"),
    "inception_resnet_v2": Case("inception_resnet_v2", {}, 128),
    "inception_v3": Case("inception_v3", {}, 128),
    "inception_v4": Case("inception_v4", {}, 128),
    "lcnetv2": Case("lcnetv2_small"),
    "levit": Case("levit_128s"),
    "lowformer": Case("lowformer_b0"),
    "mambaout": Case("mambaout_femto"),
    "maxxvit": Case("maxvit_pico_rw_256"),
    "metaformer": Case("poolformerv2_s12"),
    "mlp_mixer": Case("gmlp_ti16_224"),
    "mobilenetv3": Case("lcnet_035"),
    "mobilenetv5": Case("mobilenetv5_base", {"channel_multiplier": 0.25}),
    "mobilevit": Case("mobilevit_xxs"),
    "mvitv2": Case("mvitv2_tiny"),
    "naflexvit": Case("naflexvit_base_patch16_gap", {"embed_dim": 192, "depth": 2, "num_heads": 3}),
    "nasnet": Case("nasnetalarge"),
    "nest": Case("nest_tiny"),
    "nextvit": Case("nextvit_small"),
    "nfnet": Case("nf_regnet_b0"),
    "pit": Case("pit_ti_224"),
    "pnasnet": Case("pnasnet5large"),
    "pvt_v2": Case("pvt_v2_b0"),
    "qwen3_vit": Case("qwen3_vit_88m", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
    "rdnet": Case("rdnet_tiny"),
    "regnet": Case("regnetx_002"),
    "repghost": Case("repghostnet_050"),
    "repvit": Case("repvit_m1"),
    "res2net": Case("res2net50_14w_8s", {"layers": [1, 1, 1, 1]}),
    "resnest": Case("resnest14d"),
    "resnet": Case("resnet10t"),
    "resnetv2": Case("resnetv2_18"),
    "rexnet": Case("rexnet_100"),
    "selecsls": Case("selecsls42", {}, 96),
    "senet": Case("legacy_seresnet18"),
    "sequencer": Case("sequencer2d_s", {"layers": [1, 1, 1, 1]}),
    "shvit": Case("shvit_s1", {}, 96),
    "sknet": Case("skresnet18"),
    "starnet": Case("starnet_s050"),
    "swiftformer": Case("swiftformer_xs"),
    "swin_transformer": Case(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "swin_transformer_v2": Case(
        "swinv2_tiny_window8_256",
        {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "swin_transformer_v2_cr": Case(
        "swinv2_cr_tiny_224",
        {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "tiny_vit": Case("tiny_vit_5m_224"),
    "tnt": Case(
        "tnt_s_patch16_224",
        {"embed_dim": 96, "inner_dim": 8, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 3},
    ),
    "tresnet": Case("tresnet_m", {"layers": [1, 1, 2, 1], "width_factor": 0.25}),
    "twins": Case(
        "twins_svt_small",
        {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "vgg": Case("vgg11", {"mlp_ratio": 0.05}),
    "visformer": Case("visformer_tiny"),
    "vision_transformer": Case("vit_tiny_patch16_224"),
    "vision_transformer_hybrid": Case("vit_tiny_r_s16_p8_224"),
    "vision_transformer_relpos": Case("vit_srelpos_small_patch16_224"),
    "vision_transformer_sam": Case(
        "samvit_base_patch16_224", {"embed_dim": 192, "depth": 3, "num_heads": 3}
    ),
    "vitamin": Case("vitamin_small_224"),
    "volo": Case("volo_d1_224"),
    "vovnet": Case("ese_vovnet19b_slim_dw"),
    "xception": Case("legacy_xception"),
    "xception_aligned": Case("xception41"),
    "xcit": Case("xcit_nano_12_p8_224"),
}


class Failure(NamedTuple):
    """Why a family cannot be loaded by some loaders before a version of timm."""

    loaders: tuple[str, ...]
    before: str
    reason: str


_TAKEN_FOR_OLD = (
    "timm takes weights without a classifier for those of an older version of the architecture, "
    "and renames them"
)
_READS_NUMBERS = (
    "timm computes with the values of tensors to build it, and transformers builds without memory"
)
FAILURES = {
    "csatv2": Failure(("transformers",), "1.0.30", _READS_NUMBERS),
    "davit": Failure(("timm",), "1.0.31", _TAKEN_FOR_OLD),
    "inception_next": Failure(
        LOADERS, "1.0.31", "timm gives it no features without a classifier; it cannot be trained"
    ),
    "nextvit": Failure(("timm",), "1.0.31", _TAKEN_FOR_OLD),
    "regnet": Failure(("transformers",), "1.0.30", _READS_NUMBERS),
    "swin_transformer": Failure(("timm",), "1.0.31", _TAKEN_FOR_OLD),
    "swin_transformer_v2": Failure(("timm",), "1.0.31", _TAKEN_FOR_OLD),
}


def known_failure(name: str, loader: str) -> str | None:
    """Return why the installed timm makes a loader fail on a case, or None if it must not fail."""
    failure = FAILURES.get(name)
    if (
        failure
        and loader in failure.loaders
        and Version(timm.__version__) < Version(failure.before)
    ):
        return f"timm before {failure.before}: {failure.reason}"
    return None


def cases() -> dict[str, Case]:
    """Return the cases of the installed timm by the name of the family or test architecture."""
    known = set(timm.list_modules())
    return {
        **{family: case for family, case in FAMILIES.items() if family in known},
        **{name: Case(name) for name in timm.list_models("test_*")},
    }
