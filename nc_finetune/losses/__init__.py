"""Losses that torch does not have. Cross-entropy with label smoothing is ``torch.nn.CrossEntropyLoss``."""

from nc_finetune.losses.base import ClassificationLoss as ClassificationLoss
from nc_finetune.losses.class_balanced import ClassBalanced as ClassBalanced
from nc_finetune.losses.class_weights import class_weights as class_weights
from nc_finetune.losses.dot_regression import DotRegressionLoss as DotRegressionLoss
from nc_finetune.losses.focal import FocalLoss as FocalLoss
from nc_finetune.losses.pick_all_labels import PickAllLabelsLoss as PickAllLabelsLoss
from nc_finetune.losses.rescaled_mse import RescaledMSELoss as RescaledMSELoss

LOSS_NAMES = ("FocalLoss", "RescaledMSELoss", "DotRegressionLoss", "PickAllLabelsLoss", "ClassBalanced")
