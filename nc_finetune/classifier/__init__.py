"""Backbone + fine-tuning method + head + loss + metrics, as one LightningModule."""

from nc_finetune.classifier.image_classifier import DivergedError as DivergedError
from nc_finetune.classifier.image_classifier import ImageClassifier as ImageClassifier
