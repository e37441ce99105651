"""Metrics of saliency maps: functions of batches here, accumulating `torchmetrics` modules in `metrics.modules`."""

from .functional import (
    METRICS,
    SaliencyMetric,
    auc_judd,
    auc_shuffled,
    cc,
    information_gain,
    kl_divergence,
    nss,
    sim,
)

__all__ = [
    "METRICS",
    "SaliencyMetric",
    "auc_judd",
    "auc_shuffled",
    "cc",
    "information_gain",
    "kl_divergence",
    "nss",
    "sim",
]
