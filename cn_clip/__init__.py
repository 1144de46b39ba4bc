"""Training, evaluating and shipping contrastive image-text models, Chinese first."""

__version__ = "2.0.0"
