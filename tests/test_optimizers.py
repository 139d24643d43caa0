"""Tests of SGD and AdamW against PyTorch's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from stkd_keras import SGD
from stkd_keras.optimizers import AdamW, AfterPretraining

L2, EPSILON, STEPS = 0.05, 1e-5, 20


def small_network():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(momentum=0.9, epsilon=EPSILON),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_pytorchs_for_twenty_steps(nesterov):
    torch = pytest.importorskip("torch")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, 16, 6)).astype("float32")
    y = rng.integers(0, 3, (STEPS, 16))
    model = small_network()
    twin = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    with torch.no_grad():
        for linear, dense in ((twin[0], model.layers[0]), (twin[3], model.layers[3])):
            linear.weight.copy_(torch.tensor(dense.kernel.numpy().T))
            linear.bias.copy_(torch.tensor(dense.bias.numpy()))
    kernels = [twin[0].weight, twin[3].weight]
    others = [p for p in twin.parameters() if all(p is not k for k in kernels)]
    theirs = torch.optim.SGD(
        [{"params": kernels, "weight_decay": L2}, {"params": others}],
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
    )
    rates = 0.1 * np.cos(np.linspace(0, 1.5, STEPS))
    model.compile(
        SGD(0.1, momentum=0.9, nesterov=nesterov, l2=L2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    variance = np.ones(8)
    for step in range(STEPS):
        model.optimizer.learning_rate = rates[step]
        model.train_on_batch(x[step], y[step])
        theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = rates[step]
        with torch.no_grad():
            hidden = twin[0](torch.tensor(x[step])).numpy()
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(
            twin(torch.tensor(x[step])), torch.tensor(y[step])
        ).backward()
        theirs.step()
        # PyTorch's running variance uses the unbiased estimate, Keras's the biased one.
        variance = 0.9 * variance + 0.1 * hidden.var(axis=0)

    norm = model.layers[1]
    pairs = [
        (model.layers[0].kernel, twin[0].weight.T),
        (model.layers[0].bias, twin[0].bias),
        (norm.gamma, twin[1].weight),
        (norm.beta, twin[1].bias),
        (norm.moving_mean, twin[1].running_mean),
        (model.layers[3].kernel, twin[3].weight.T),
        (model.layers[3].bias, twin[3].bias),
    ]
    for ours, other in pairs:
        np.testing.assert_allclose(ours.numpy(), other.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance.numpy(), variance, atol=1e-4)


def test_adamw_equals_pytorchs_for_twenty_steps():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    variables = [
        keras.Variable(kernel, name="kernel", dtype="float32"),
        keras.Variable(bias, name="bias", dtype="float32"),
    ]
    theirs = [torch.tensor(x, dtype=torch.float32) for x in (kernel, bias)]
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": L2}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=0.01,
        eps=1e-7,
    )
    rates = 0.01 * np.cos(np.linspace(0, 1.5, STEPS))
    optimizer = AdamW(0.01, weight_decay=L2)
    for rate in rates:
        gradients = [rng.normal(size=x.shape).astype("float32") for x in (kernel, bias)]
        optimizer.learning_rate = rate
        optimizer.apply(gradients, variables)
        for group in reference.param_groups:
            group["lr"] = rate
        for their, gradient in zip(theirs, gradients, strict=True):
            their.grad = torch.tensor(gradient)
        reference.step()
    for ours, their in zip(variables, theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), their.numpy(), atol=1e-5)


def adamw_by_hand(weight, gradients, rates, decay):
    """AdamW as in arXiv 1711.05101, algorithm 2."""
    m = v = np.zeros_like(weight)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        weight = weight - rate * (step + decay * weight)
    return weight


def sgd_by_hand(weight, gradients, rates, decay):
    """Nesterov momentum 0.9 with L2 in the gradient, as in PyTorch."""
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + decay * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * (gradient + 0.9 * velocity)
    return weight


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("by_hand", "make"),
    [
        (adamw_by_hand, lambda **options: AdamW(0.1, weight_decay=0.3, **options)),
        (sgd_by_hand, lambda **options: SGD(0.1, l2=0.3, **options)),
    ],
)
def test_a_backbone_is_frozen_and_then_has_its_own_learning_rate(by_hand, make, jit_compile):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 2, 4))  # Two kernels of the backbone, and the head's.
    gradients = rng.normal(size=(5, 3, 2, 4))
    optimizer = make(backbone_variables=2, backbone_rate=0.2, frozen_steps=2)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    variables = [keras.Variable(value, name="kernel", dtype="float32") for value in values]
    optimizer.build(variables)
    step = tf.function(lambda *each: optimizer.apply(each), jit_compile=jit_compile)
    for number, each in enumerate(gradients):
        step(*tf.constant(each, tf.float32))
        if number < 2:
            for variable, value in zip(variables[:2], values, strict=False):
                np.testing.assert_array_equal(variable, np.float32(value))
    assert step.experimental_get_tracing_count() == 1
    rates = np.array([[0, 0, 0.02, 0.02, 0.02]] * 2 + [[0.1] * 5])
    for n, variable in enumerate(variables):
        expected = by_hand(values[n], gradients[:, n], rates[n], decay=0.3)
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: SGD(1.0, momentum=0.0, l2=0.5), lambda: AdamW(1.0, weight_decay=0.5)]
)
def test_weight_decay_spares_biases_and_normalization(make):
    inputs = keras.Input((5, 4))
    # The biases of attention have two dimensions.
    x = keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    for weight in model.trainable_weights:
        weight.assign(np.ones(weight.shape))
    optimizer = make()
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros(w.shape, "float32") for w in model.trainable_variables])
    for weight in model.trainable_weights:
        decays = weight.name == "kernel"
        assert (weight.numpy() == (0.5 if decays else 1.0)).all(), weight.path


def test_an_optimizer_is_restored_from_its_config():
    optimizer = SGD(0.2, momentum=0.8, nesterov=False, l2=1e-3, clipnorm=1.0)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_a_schedule_starts_after_pretraining():
    schedule = AfterPretraining(keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0), 3, 0.01)
    restored = AfterPretraining.from_config(schedule.get_config())
    for each in (schedule, restored):
        rates = [float(each(step)) for step in (0, 2, 3, 8)]
        np.testing.assert_allclose(rates, [0.01, 0.01, 0.1, 0.05], rtol=1e-5)
