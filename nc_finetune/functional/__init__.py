"""Pure tensor functions; nothing here imports more than torch."""

from nc_finetune.functional.class_statistics import ClassStatistics as ClassStatistics
from nc_finetune.functional.class_statistics import empty_class_statistics as empty_class_statistics
from nc_finetune.functional.class_statistics import merge_class_statistics as merge_class_statistics
from nc_finetune.functional.class_statistics import update_class_statistics as update_class_statistics
from nc_finetune.functional.variability import nc1 as nc1
from nc_finetune.functional.variability import nc1_from_statistics as nc1_from_statistics
