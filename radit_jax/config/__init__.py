"""Everything that an experiment and its readers need of the settings."""

import warnings
from typing import Any

from radit_jax.config.checks import check_experiment, check_shape, checkpoint_folder
from radit_jax.config.data_settings import Folder, GeneratedWorld, Instructions
from radit_jax.config.experiment_files import experiment_file, experiment_names
from radit_jax.config.overrides import load_experiment, override_settings
from radit_jax.config.renamed_settings import CLASSES
from radit_jax.config.settings import (
    OWN_ANSWERS,
    BaseConfig,
    EmbedConfig,
    EvaluateConfig,
    Experiment,
    ExportConfig,
    IndexConfig,
    LmConfig,
    LmFtConfig,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    RetrieveConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)
from radit_jax.config.shapes import (
    PROJECTIONS,
    TRAITS,
    VECTOR_SETTINGS,
    BertConfig,
    DecoderConfig,
    Direction,
    EncoderConfig,
    EncoderFamily,
    Family,
    LastTokenConfig,
    LmScoreForm,
    Pooling,
    RopeScaling,
    layers_of,
    shape_error,
)

__all__ = [
    "BaseConfig",
    "BertConfig",
    "Direction",
    "EmbedConfig",
    "EncoderConfig",
    "EncoderFamily",
    "EvaluateConfig",
    "Experiment",
    "ExportConfig",
    "Family",
    "Folder",
    "GeneratedWorld",
    "IndexConfig",
    "Instructions",
    "DecoderConfig",
    "LastTokenConfig",
    "LmConfig",
    "LmFtConfig",
    "LmScoreForm",
    "LoraConfig",
    "MeshConfig",
    "OWN_ANSWERS",
    "OptimizerConfig",
    "PROJECTIONS",
    "Pooling",
    "ProfileConfig",
    "RFtConfig",
    "RetrieveConfig",
    "RetrieverConfig",
    "RopeScaling",
    "ScoreConfig",
    "TRAITS",
    "VECTOR_SETTINGS",
    "check_experiment",
    "check_shape",
    "checkpoint_folder",
    "experiment_file",
    "experiment_names",
    "layers_of",
    "load_experiment",
    "override_settings",
    "shape_error",
]


def __getattr__(name: str) -> Any:
    """A class of settings by its name of release 0.1, until release 0.3."""
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} was renamed {CLASSES[name]}; the old name works until 0.3", FutureWarning, 2)
    return globals()[CLASSES[name]]
