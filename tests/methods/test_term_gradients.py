"""What learns from a term and what doesn't, with gradients that are finite everywhere."""

import numpy as np
import pytest
import tensorflow as tf
from every_method import NAMES, call, inputs_of, make


def gradients_of(term, student, teacher, labels, loss=call):
    """Returns the gradients with respect to the student, the teacher and the term's variables."""
    student, teacher = (
        {name: tf.constant(each[name]) for name in term.features} for each in (student, teacher)
    )
    call(term, student, teacher, labels)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        value = tf.reduce_mean(loss(term, student, teacher, labels))
    variables = {variable.path: variable.value for variable in term.trainable_variables}
    return tape.gradient(value, (student, teacher, variables))


def pretraining(term, student, teacher, labels):
    return term.pretraining_loss(student, teacher, labels)


def is_finite(gradients):
    found = [gradient for gradient in tf.nest.flatten(gradients) if gradient is not None]
    return all(np.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("name", NAMES)
def test_student_and_adapters_learn_and_the_teacher_does_not(name):
    of_student, of_teacher, of_variables = gradients_of(make(name), *inputs_of(name))
    assert is_finite((of_student, of_variables))
    assert all(np.any(gradient) for gradient in of_student.values())
    assert set(of_teacher.values()) == {None}
    # The paraphraser, which learns from the teacher alone, has a test of its own below.
    trained = [gradient for gradient in of_variables.values() if gradient is not None]
    assert len(trained) == len(of_variables) or name == "ft"
    assert all(np.any(gradient) for gradient in trained)


def test_the_paraphraser_learns_from_its_own_stage_alone():
    term = make("ft")
    parts = ("encoder", "decoder", "translator")
    learning = {}
    for loss in (call, pretraining):
        of_student, of_teacher, of_variables = gradients_of(term, *inputs_of("ft"), loss=loss)
        assert set(of_teacher.values()) == {None}
        for part in parts:
            paths = [v.path for v in getattr(term, part).trainable_variables]
            found = [of_variables[path] is not None for path in paths]
            assert len(set(found)) == 1
            learning[loss.__name__, part] = found[0]
        assert (of_student["stage3"] is None) == (loss is pretraining)
    assert [learning["call", part] for part in parts] == [False, False, True]
    assert [learning["pretraining", part] for part in parts] == [True, True, False]


def zeros(values):
    return {name: np.zeros_like(value) for name, value in values.items()}


def one_sample_many_times(values):
    return {name: np.repeat(value[:1], len(value), axis=0) for name, value in values.items()}


@pytest.mark.parametrize("degenerate", [zeros, one_sample_many_times])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_of_features_that_are_degenerate(name, degenerate):
    student, teacher, labels = inputs_of(name)
    for s, t in (
        (degenerate(student), teacher),
        (student, degenerate(teacher)),
        (degenerate(student), degenerate(teacher)),
    ):
        term = make(name)
        of_student, _, of_variables = gradients_of(term, s, t, labels)
        assert np.isfinite(call(term, s, t, labels))
        assert is_finite((of_student, of_variables))
        assert max(np.abs(gradient).max() for gradient in of_student.values()) < 1e4


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_has_a_finite_loss(name):
    term = make(name)
    inputs = inputs_of(name, batch=1)
    assert np.isfinite(call(term, *inputs))
    assert is_finite(gradients_of(term, *inputs)[::2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_gradients_are_finite_of_tiny_and_of_large_features(name, scale):
    student, teacher, labels = inputs_of(name)
    student = {key: values * np.float32(scale) for key, values in student.items()}
    of_student, _, of_variables = gradients_of(make(name), student, teacher, labels)
    assert is_finite((of_student, of_variables))


def test_equal_samples_do_not_push_each_other_in_relational_distillation():
    student, teacher, labels = inputs_of("rkd")
    student["embedding"][1] = student["embedding"][0]
    of_student, _, _ = gradients_of(make("rkd"), student, teacher, labels)
    assert np.abs(of_student["embedding"]).max() < 1e3
