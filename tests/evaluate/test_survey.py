"""Every metric that the survey names is there, under a name that `sae list metrics` shows."""

from sae_lib.evaluate import METRICS

STRUCTURAL = {
    "Mean Squared Error",
    "Cosine Similarity",
    "FVU",
    "Explained Variance",
    "Cross-Entropy Loss",
    "KL Divergence",
    "Delta LM Loss",
    "L2 Ratio",
    "L0 Sparsity",
    "Latent Firing Frequency",
    "Feature Density Statistics",
    "Sparsity-fidelity Trade-off",
}
"""Section 4.1."""

FUNCTIONAL = {
    "RAVEL",
    "Automated Interpretability",
    "Sparse Probing",
    "Targeted Probe Perturbation",
    "Input-Based Evaluation",
    "Output-Based Evaluation",
    "Feature Absorption",
    "Feature Geometry Analysis",
    "Generalizability",
    "Unlearning",
    "Spurious Correlation Removal",
}
"""Section 4.2; appendix D shows some of both."""

BESIDE_PROBES = {
    "Concept Detection",
    "Concept Steering",
    "Data Scarcity",
    "Class Imbalance",
    "Label Noise",
    "Covariate Shift",
}
"""Appendix F: AxBench, and the four regimes of Kantamneni et al."""


def test_every_metric_of_the_survey_has_a_file():
    named = {name for metric in METRICS.values() for name in metric.survey}
    assert named == STRUCTURAL | FUNCTIONAL | BESIDE_PROBES
