"""Tests of FitNet and VID."""

import numpy as np
from every_method import call, inputs_of

from stkd_keras import methods


def test_vid_is_a_gaussian_negative_log_likelihood_without_its_constant():
    student, teacher, labels = inputs_of("vid")
    term = methods.VID()
    expected = 0.0
    call(term, student, teacher, labels)
    rng = np.random.default_rng(0)
    for name, mean, parameter in zip(
        term.features, term.means, term.variance_parameters, strict=True
    ):
        np.testing.assert_allclose(np.log1p(np.exp(parameter.numpy())) + 1e-5, 5.0, rtol=1e-5)
        parameter.assign(rng.normal(size=parameter.shape))
        kernels = [weight.numpy()[0, 0] for weight in mean.trainable_variables]
        assert len(kernels) == 3
        hidden = np.float64(student[name])
        for kernel in kernels[:-1]:
            hidden = np.maximum(hidden @ kernel, 0)
        prediction = hidden @ kernels[-1]
        variance = np.log1p(np.exp(np.float64(parameter))) + 1e-5
        density = np.exp(-((prediction - teacher[name]) ** 2) / (2 * variance))
        density /= np.sqrt(2 * np.pi * variance)
        expected += np.mean(-np.log(density)) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(call(term, student, teacher, labels), expected, rtol=1e-5)
