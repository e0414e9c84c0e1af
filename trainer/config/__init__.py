"""Configuration: the schema, its composition from `configs/`, its validation and its explanation. Imports no torch."""

from trainer.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    Config,
    DataConfig,
    DistributedConfig,
    EvaluateConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    WandbConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EvaluateConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "WandbConfig",
]
