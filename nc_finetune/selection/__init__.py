"""Which block to tune, and which backbone to take."""

from nc_finetune.selection.choose_callback import ChooseKeyLayer as ChooseKeyLayer
from nc_finetune.selection.cross_validation import CrossValidation as CrossValidation
from nc_finetune.selection.cross_validation import FoldError as FoldError
from nc_finetune.selection.device import best_device as best_device
from nc_finetune.selection.held_out import HeldOut as HeldOut
from nc_finetune.selection.key_layer import KeyLayerChoice as KeyLayerChoice
from nc_finetune.selection.key_layer import choose_key_layer as choose_key_layer
from nc_finetune.selection.profile import block_costs as block_costs
from nc_finetune.selection.profile import measure_blocks as measure_blocks
from nc_finetune.selection.profile_backbone import profile_backbone as profile_backbone
from nc_finetune.selection.rates import RateSearch as RateSearch
from nc_finetune.selection.rates import search_rates as search_rates
from nc_finetune.selection.rules import simple_rules as simple_rules
from nc_finetune.selection.shared_caches import forget_prefixes as forget_prefixes
from nc_finetune.selection.shared_caches import pixel_folder as pixel_folder
from nc_finetune.selection.shared_caches import prefix_caches as prefix_caches
from nc_finetune.selection.trainer import StopAfter as StopAfter
from nc_finetune.selection.trainer import quiet_trainer as quiet_trainer
