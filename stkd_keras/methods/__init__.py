"""Published distillation methods, as layers that add a loss term to the distiller.

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
    "AB", "AT", "CC", "CRD", "DIST", "DKD", "FSP", "FT", "METHODS", "NST", "PKT", "RKD", "SP",
    "VID", "DistillationTerm", "FitNet", "Method", "PretrainedTerm", "StandardizedKD", "method",
]  # fmt: skip

REPDISTILLER = "github.com/HobbitLong/RepDistiller, scripts/run_cifar_distill.sh"
MDISTILLER = "github.com/megvii-research/mdistiller, mdistiller/engine/cfg.py"
DIST_CODE = "github.com/hunto/image_classification_sota, lib/models/losses/kd_loss.py"
STANDARDIZATION = "github.com/sunshangquan/logit-standardization-KD, README.md"


@dataclass(frozen=True)
class Method:
    """A method's loss term, with the training settings of its benchmark.

    The term's weight and its other settings are the defaults of its constructor.

    Attributes:
        term: the class of the term.
        source: where the settings come from.
        temperature: the term's argument `temperature`, or None if it has none.
        label_weight: weight of the cross-entropy with the labels.
        soft_weight: weight of the plain soft-target loss, which is added to the term.
        pretraining_epochs: length of the pretraining stage, 0 if the method has none.
        options: arguments of the constructor that differ from its defaults.
    """

    term: type[DistillationTerm]
    source: str
    temperature: float | None = None
    label_weight: float = 1.0
    soft_weight: float = 0.0
    pretraining_epochs: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "fitnet": Method(FitNet, REPDISTILLER),
    "at": Method(AT, REPDISTILLER),
    "sp": Method(SP, REPDISTILLER),
    "cc": Method(CC, REPDISTILLER),
    "vid": Method(VID, REPDISTILLER),
    "rkd": Method(RKD, REPDISTILLER),
    "pkt": Method(PKT, REPDISTILLER),
    "ab": Method(AB, REPDISTILLER, pretraining_epochs=30),
    "ft": Method(FT, REPDISTILLER, pretraining_epochs=30),
    "fsp": Method(
        FSP,
        REPDISTILLER,
        pretraining_epochs=30,
        options={"features": ("stem", "stage1", "stage2", "stage3")},
    ),
    "nst": Method(NST, REPDISTILLER),
    "crd": Method(CRD, REPDISTILLER),
    "dkd": Method(DKD, MDISTILLER, temperature=4.0),
    "dist": Method(DIST, DIST_CODE, temperature=1.0),
    "kd_standardized": Method(StandardizedKD, STANDARDIZATION, temperature=2.0),
}


def method(name: str) -> Method:
    """Returns a method by name.

    Raises:
        InputError: if the name is unknown. The message lists similar names.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
