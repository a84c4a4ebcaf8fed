"""Labelled images and their splits; the only place that knows HF datasets."""

from nc_finetune._common.data_facts import TellsOfData as TellsOfData
from nc_finetune.data._pixels.transforms import DecodeAndResize as DecodeAndResize
from nc_finetune.data.bad_images import BadImage as BadImage
from nc_finetune.data.batch_transforms import PerImage as PerImage
from nc_finetune.data.batch_transforms import RandomCropFlip as RandomCropFlip
from nc_finetune.data.check import DataReport as DataReport
from nc_finetune.data.check import check_data as check_data
from nc_finetune.data.image_data import ImageData as ImageData
from nc_finetune.data.labelled_images import LabelledImages as LabelledImages
from nc_finetune.data.sources.source import load_source as load_source
from nc_finetune.data.sources.tables import Source as Source
from nc_finetune.data.splits.stratified import split_off as split_off
from nc_finetune.data.splits.stratified import take_per_class as take_per_class
from nc_finetune.data.training_folds import TrainingFold as TrainingFold
from nc_finetune.data.training_folds import training_folds as training_folds
from nc_finetune.data.unlabelled_folder import UnlabelledFolder as UnlabelledFolder
from nc_finetune.data.unlabelled_folder import UnlabelledSource as UnlabelledSource
