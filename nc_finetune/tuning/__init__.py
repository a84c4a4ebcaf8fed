"""From a folder of images to a model, in one call."""

from nc_finetune.tuning.estimate import Estimate as Estimate
from nc_finetune.tuning.estimate import estimate_accuracy as estimate_accuracy
from nc_finetune.tuning.label_check import LabelCheck as LabelCheck
from nc_finetune.tuning.label_check import check_labels as check_labels
from nc_finetune.tuning.pipeline import DEFAULT_BACKBONE as DEFAULT_BACKBONE
from nc_finetune.tuning.pipeline import Tuned as Tuned
from nc_finetune.tuning.pipeline import tune as tune
