"""Settings: their schema, and how command lines and YAML files are read into it.

The schema has a file for each part of a run (`models`, `corpus`, `align`, `distill`, `train`, `cluster`, `tracking`,
`evaluation`, `demo`); `run` puts them together, and this file exports them.
"""

from lingu_ray.config.align import AlignConfig, AlignRates
from lingu_ray.config.base import Schedule, Section, Several
from lingu_ray.config.cluster import RayConfig
from lingu_ray.config.corpus import CorpusConfig, Format, SourceConfig
from lingu_ray.config.demo import DemoConfig
from lingu_ray.config.distill import DistillConfig
from lingu_ray.config.evaluation import TASK_TYPES, EvaluationConfig, TaskConfig
from lingu_ray.config.models import StudentConfig, TeacherConfig, VisionConfig
from lingu_ray.config.run import CONTROLS, Config
from lingu_ray.config.tracking import TrackingConfig
from lingu_ray.config.train import Attention, LearningRates, LoraConfig, TrainConfig

__all__ = [
    "CONTROLS",
    "TASK_TYPES",
    "AlignConfig",
    "AlignRates",
    "Attention",
    "Config",
    "CorpusConfig",
    "DemoConfig",
    "DistillConfig",
    "EvaluationConfig",
    "Format",
    "LearningRates",
    "LoraConfig",
    "RayConfig",
    "Schedule",
    "Section",
    "Several",
    "SourceConfig",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "VisionConfig",
]
