"""The published distillation methods: each a layer, a further term of the distiller's loss.

`METHODS` lists them by name, with the settings of their benchmarks. docs/add-a-method.md shows how
to add one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stkd_keras.errors import unknown_name
from stkd_keras.methods.ab import AB
from stkd_keras.methods.attention import AT, NST
from stkd_keras.methods.base import DistillationTerm, PretrainedTerm
from stkd_keras.methods.crd import CRD
from stkd_keras.methods.fsp import FSP
from stkd_keras.methods.ft import FT
from stkd_keras.methods.hints import VID, FitNet
from stkd_keras.methods.logits import DIST, DKD, StandardizedKD
from stkd_keras.methods.relations import CC, PKT, RKD, SP

__all__ = [
    "AB",
    "AT",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "METHODS",
    "NST",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "DistillationTerm",
    "FitNet",
    "Method",
    "PretrainedTerm",
    "StandardizedKD",
    "method",
]

BENCH = "github.com/HobbitLong/RepDistiller, scripts/run_cifar_distill.sh"
MDISTILLER = "github.com/megvii-research/mdistiller, mdistiller/engine/cfg.py"
DIST_CODE = "github.com/hunto/image_classification_sota, lib/models/losses/kd_loss.py"
STANDARDIZATION = "github.com/sunshangquan/logit-standardization-KD, README.md"


@dataclass(frozen=True)
class Method:
    """A term and what its benchmark trains with when the method is chosen by name.

    The term's own weight and its other settings are the defaults of its constructor.

    Attributes:
        term: the class.
        source: where the settings were read.
        temperature: what the logits are divided by in the term, its argument `temperature`; None
            where it has none.
        label_weight: of the cross-entropy with the labels.
        soft_weight: of the plain soft targets beside the term.
        pretraining_epochs: epochs of the stage of its own, where the term has one.
        options: further arguments of the constructor that differ from its defaults.
    """

    term: type[DistillationTerm]
    source: str
    temperature: float | None = None
    label_weight: float = 1.0
    soft_weight: float = 0.0
    pretraining_epochs: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "fitnet": Method(FitNet, BENCH),
    "at": Method(AT, BENCH),
    "sp": Method(SP, BENCH),
    "cc": Method(CC, BENCH),
    "vid": Method(VID, BENCH),
    "rkd": Method(RKD, BENCH),
    "pkt": Method(PKT, BENCH),
    "ab": Method(AB, BENCH, pretraining_epochs=30),
    "ft": Method(FT, BENCH, pretraining_epochs=30),
    "fsp": Method(
        FSP,
        BENCH,
        pretraining_epochs=30,
        options={"features": ("stem", "stage1", "stage2", "stage3")},
    ),
    "nst": Method(NST, BENCH),
    "crd": Method(CRD, BENCH),
    "dkd": Method(DKD, MDISTILLER, temperature=4.0),
    "dist": Method(DIST, DIST_CODE, temperature=1.0),
    "kd_standardized": Method(StandardizedKD, STANDARDIZATION, temperature=2.0),
}


def method(name: str) -> Method:
    """Returns the method of a name.

    Raises:
        InputError: if it isn't known, with the nearest that are.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
