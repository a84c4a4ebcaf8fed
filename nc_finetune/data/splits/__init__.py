"""Which images are for training, validation and testing."""

from nc_finetune.data.splits.stratified import k_folds as k_folds
from nc_finetune.data.splits.stratified import split_off as split_off
from nc_finetune.data.splits.stratified import splits_hash as splits_hash
from nc_finetune.data.splits.stratified import take_per_class as take_per_class
