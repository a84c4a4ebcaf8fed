"""Labelled images and their splits; the only place that knows HF datasets."""

from nc_finetune.data.batch_transforms import PerImage as PerImage
from nc_finetune.data.batch_transforms import RandomCropFlip as RandomCropFlip
from nc_finetune.data.check import DataReport as DataReport
from nc_finetune.data.check import check_data as check_data
from nc_finetune.data.image_data import ImageData as ImageData
from nc_finetune.data.labelled_images import BadImage as BadImage
from nc_finetune.data.labelled_images import LabelledImages as LabelledImages
from nc_finetune.data.sources import Source as Source
from nc_finetune.data.sources import load_source as load_source
from nc_finetune.data.splits import split_off as split_off
from nc_finetune.data.splits import take_per_class as take_per_class
from nc_finetune.data.unlabelled_folder import UnlabelledFolder as UnlabelledFolder
from nc_finetune.data.unlabelled_folder import UnlabelledSource as UnlabelledSource
from nc_finetune.data_facts import TellsOfData as TellsOfData
