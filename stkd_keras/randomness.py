"""Random draws whose seeds are pure functions of (data_seed, step, replica)."""

import math

import tensorflow as tf

# Random streams, which are independent of each other even with the same data_seed.
ORDER, AUGMENTATION, MIXING, NEGATIVES = range(4)

# Marsaglia and Tsang's method accepts a try with a probability of at least 0.95 for shapes of at
# least 1, so all of these fail about once in 10^10 draws.
GAMMA_TRIES = 8
# TensorFlow's key for turning a seed into the key and the counter of Philox.
_SCRAMBLER = 0x02461E293EC8F720


def step_seed(data_seed, stream: int, step, replica=0) -> tf.Tensor:
    """Returns the seed of a random stream at a step, int64 (2,)."""
    seed = tf.stack([tf.cast(data_seed, tf.int64), tf.constant(stream, tf.int64)])
    for number in (step, replica):
        seed = fold_in(seed, number)
    return seed


def fold_in(seed, number) -> tf.Tensor:
    """Same as `tf.random.experimental.stateless_fold_in`, with the Philox algorithm."""
    return tf.stack([random_bits((), seed, tf.int64), tf.cast(number, tf.int64)])


def split_seed(seed, num: int) -> tf.Tensor:
    """Same as `tf.random.experimental.stateless_split`, with the Philox algorithm."""
    return random_bits((num, 2), seed, tf.int64)


def random_bits(shape, seed, dtype=tf.int32) -> tf.Tensor:
    """Returns integer draws, uniform over all values of the dtype."""
    # Integer draws are the same on every device and under XLA; floating-point draws may differ.
    # This is `tf.random.stateless_uniform(..., alg="philox")` with a third of its operations, which
    # were most of a training step's.
    mixed = _philox([2], tf.constant([_SCRAMBLER], tf.uint64), tf.cast(seed, tf.uint64), tf.uint64)
    key, counter = tf.split(mixed, 2)
    return _philox(shape, key, tf.concat([tf.zeros([1], tf.uint64), counter], 0), dtype)


def uniforms(shape, seed) -> tf.Tensor:
    """Returns float64 draws strictly between 0 and 1, on a grid of 2^-32."""
    return (tf.cast(random_bits(shape, seed), tf.float64) + (2.0**31 + 0.5)) * 2.0**-32


def dirichlet(alpha: float, rows, columns: int, seed) -> tf.Tensor:
    """Returns float64 draws (rows, columns) from Dirichlet(alpha, ..., alpha).

    Normalizes gamma draws by Marsaglia and Tsang, "A simple method for generating gamma variables"
    (2000), with a fixed number of tries: TensorFlow's own gamma has no XLA kernel. Works with
    logarithms, because at alpha = 0.01 most gamma draws are below the smallest float.
    """
    draws = uniforms((3 * GAMMA_TRIES + 1, rows, columns), seed)
    radius, angle, acceptance, boost = tf.split(draws, [GAMMA_TRIES] * 3 + [1])
    normal = tf.sqrt(-2.0 * tf.math.log(radius)) * tf.cos(2.0 * math.pi * angle)

    # The method needs a shape of at least 1; the boost below corrects a smaller alpha.
    d = alpha + (1.0 if alpha < 1 else 0.0) - 1.0 / 3.0
    v = tf.pow(tf.maximum(1.0 + normal / math.sqrt(9.0 * d), 1e-10), 3)
    bound = 0.5 * normal**2 + d * (1.0 - v + tf.math.log(v))
    accepted = (v > 1e-30) & (tf.math.log(acceptance) < bound)
    first = tf.one_hot(tf.argmax(tf.cast(accepted, tf.int32)), GAMMA_TRIES, axis=0, dtype=v.dtype)
    log_gamma = math.log(d) + tf.math.log(tf.reduce_sum(first * v, axis=0))
    if alpha < 1:
        log_gamma += tf.math.log(boost[0]) / alpha
    return tf.nn.softmax(log_gamma, axis=1)


def _philox(shape, key, counter, dtype) -> tf.Tensor:
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=key, counter=counter, alg=1, dtype=dtype
    )
