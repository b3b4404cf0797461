"""Every knob of the system, once, in the order of the pipeline.

One section per concern; a step's fingerprint covers just the sections it reads. All models are frozen and refuse
unknown keys. What can be derived (vocabulary sizes, grid, sequence length) is a property and is computed nowhere else.
Each description gives the unit, and the reason for the default where it is not plain; bounds are enforced.
"""

from dalle_model.config.base import Section, canonical_json
from dalle_model.config.data import CurateConfig, FetchConfig, IngestConfig
from dalle_model.config.pipeline import EvaluateConfig, GenerateConfig, PipelineConfig
from dalle_model.config.sampler import SamplerChange, SamplerConfig
from dalle_model.config.tokens import AugmentConfig, EncodeConfig, ImportTokenizerConfig, OptimConfig, TokenizerConfig
from dalle_model.config.training import FitConfig, GeneratorConfig, ModelConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "CurateConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "FetchConfig",
    "FitConfig",
    "GenerateConfig",
    "GeneratorConfig",
    "ImportTokenizerConfig",
    "IngestConfig",
    "ModelConfig",
    "OptimConfig",
    "PipelineConfig",
    "SamplerChange",
    "SamplerConfig",
    "Section",
    "TokenizerConfig",
    "TrainConfig",
    "canonical_json",
]
