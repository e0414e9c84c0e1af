"""Configuration: the schema, its composition from `configs/`, its continuation and its explanation.

Imports no torch; Hydra and OmegaConf are loaded only where a configuration is composed.
"""

from trainer.config.batch import BatchPlan, batch_plan
from trainer.config.compose import compose
from trainer.config.continuation import check_agreement, differences
from trainer.config.names import config_root
from trainer.config.plain import from_yaml, read_config, to_dict, to_yaml
from trainer.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    Config,
    DataConfig,
    DistributedConfig,
    EmaConfig,
    EvaluateConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    WandbConfig,
)

__all__ = [
    "BatchPlan",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EmaConfig",
    "EvaluateConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "WandbConfig",
    "batch_plan",
    "check_agreement",
    "compose",
    "config_root",
    "differences",
    "from_yaml",
    "read_config",
    "to_dict",
    "to_yaml",
]
