"""Which block to tune, and which backbone to take."""

from nc_finetune.selection.choose_callback import ChooseKeyLayer as ChooseKeyLayer
from nc_finetune.selection.device import best_device as best_device
from nc_finetune.selection.key_layer import KeyLayerChoice as KeyLayerChoice
from nc_finetune.selection.key_layer import choose_key_layer as choose_key_layer
from nc_finetune.selection.profile import block_costs as block_costs
from nc_finetune.selection.profile import measure_blocks as measure_blocks
from nc_finetune.selection.profile_backbone import profile_backbone as profile_backbone
from nc_finetune.selection.rules import simple_rules as simple_rules
