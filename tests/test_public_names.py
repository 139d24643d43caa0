"""Names that version 0.1.0 documented can be imported from the same places."""

import importlib

import pytest

NAMES = {
    "stkd_keras": "SGD CutMix FrozenTeacher InputError Mixup RecordedTeacher "
    "SimilarityTransferDistiller SoftTargetLoss __version__ fuse_batch_normalization "
    "record_teacher",
    "stkd_keras.data": "AUGMENTATIONS DEFAULT_MEMORY_LIMIT NAMES AnySplit Dataset Joined "
    "RecordSplit Split aligned_empty check_name check_split_arguments content_hash "
    "evaluation_pipeline from_arrays join_unlabeled left_over load parse_normalization pipeline "
    "split_train steps_per_epoch",
    "stkd_keras.methods": "AB AT CC CRD DIST DKD FSP FT METHODS NST PKT RKD SP VID "
    "DistillationTerm FitNet Method PretrainedTerm StandardizedKD method",
    "stkd_keras.methods.arithmetic": "unit_vectors per_sample_mean pooled_alike",
    "stkd_keras.methods.adapters": "linear regressor convolution",
    "stkd_keras.experiment": "Student complete describe evaluate export format_description "
    "format_metrics make_optimizer report split start train write_model_card BACKUP_STEPS",
    "stkd_keras.recipes": "METHODS MIXINGS OPTIMIZERS OWN_METHODS RECIPES SETTINGS Recipe "
    "can_replay check_optimizer check_recipe default_pretraining_epochs distiller_arguments "
    "make_mixing "
    "make_terms method_settings needs_features needs_teacher recipe_for",
    "stkd_keras.run_directory": "RunDirectory read_json write_json write_model",
    "stkd_keras.evaluation": "CONFIDENCE_LEVEL ECE_BINS EVALUATION_BATCH compiled divergences "
    "fidelity log_softmax predict_logits reliability score wilson_interval",
    "stkd_keras.distribution": "is_chief largest_batch make_strategy wait_for_all",
    "stkd_keras.dry_run": "in_words say time_training training_seconds",
    "stkd_keras.export": "export",
    "stkd_keras.report": "Student",
    "models": "available build check_source features load load_for load_pytorch save_pytorch",
    "models.teachers": "TeacherSource fit_images load_teachers parse_teachers train_teacher",
    "models.finished_runs": "FinishedRun load_student read_run",
}


@pytest.mark.parametrize("module", NAMES)
def test_documented_names_can_be_imported(module):
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(imported, name)] == []
