"""Losses that torch does not have. Cross-entropy with label smoothing is ``torch.nn.CrossEntropyLoss``."""

from torch import nn

from nc_finetune._common.class_names import class_names
from nc_finetune.losses.base import ClassificationLoss as ClassificationLoss
from nc_finetune.losses.class_balanced import ClassBalanced as ClassBalanced
from nc_finetune.losses.class_weights import class_weights as class_weights
from nc_finetune.losses.dot_regression import DotRegressionLoss as DotRegressionLoss
from nc_finetune.losses.focal import FocalLoss as FocalLoss
from nc_finetune.losses.pick_all_labels import PickAllLabelsLoss as PickAllLabelsLoss
from nc_finetune.losses.rescaled_mse import RescaledMSELoss as RescaledMSELoss
from nc_finetune.losses.targets import check_loss as check_loss
from nc_finetune.losses.targets import has_independent_classes as has_independent_classes
from nc_finetune.losses.targets import loss_value as loss_value
from nc_finetune.losses.targets import match_loss_state as match_loss_state
from nc_finetune.losses.targets import mean_and_weight as mean_and_weight
from nc_finetune.losses.targets import takes_several_labels as takes_several_labels

LOSS_NAMES = class_names(globals(), nn.Module)
