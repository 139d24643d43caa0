"""Small distillers, and their losses in NumPy."""

import keras
import networks
import numpy as np

from stkd_keras import SimilarityTransferDistiller

T, SOFT, LABEL = 3.0, 0.7, 0.4


def log_softmax(z):
    z = np.float64(z) - np.max(z, axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def make(student=None, teacher=None, eager=False, **settings):
    """Returns a small compiled distiller."""
    distiller = SimilarityTransferDistiller(
        student or networks.dense_classifier(width=6),
        teacher or networks.dense_classifier(width=16),
        **{"temperature": T, "soft_weight": SOFT, "label_weight": LABEL, **settings},
    )
    distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], run_eagerly=eager)
    return distiller


def losses_by_hand(distiller, x, soft_labels, sample_weight, step):
    """NumPy's label loss, soft loss and agreement on the mixtures of one step."""
    partners, weights = (
        t.numpy() for t in distiller.mixing.draw(len(x), seed=distiller.mixing_seed(step))
    )

    def mix(values):
        return np.einsum("ik,ik...->i...", np.float64(weights), np.float64(values)[partners])

    xm, ym, wm = mix(x), mix(soft_labels), mix(sample_weight)
    outputs = distiller.student(xm.astype("float32"), training=True).numpy()
    is_softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-5)
    s = log_softmax(np.log(outputs) if is_softmax else outputs)
    teacher_logits = distiller.teacher(xm.astype("float32")).numpy()
    p, q = log_softmax(teacher_logits / T), log_softmax(s / T)
    soft = T**2 * (np.exp(p) * (p - q)).sum(axis=1)
    label = -(ym * s).sum(axis=1)
    agreement = (teacher_logits.argmax(axis=1) == s.argmax(axis=1)).mean()
    return (wm * label).mean(), (wm * soft).mean(), agreement
