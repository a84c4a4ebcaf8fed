"""Pre-trained networks behind one interface; the only place that knows timm and open_clip."""

from nc_finetune.backbones.base import PENULTIMATE as PENULTIMATE
from nc_finetune.backbones.base import STEM as STEM
from nc_finetune.backbones.base import Backbone as Backbone
from nc_finetune.backbones.block_chains import find_block_chains as find_block_chains
from nc_finetune.backbones.block_finder import find_block_names as find_block_names
from nc_finetune.backbones.create import create_backbone as create_backbone
from nc_finetune.backbones.feature_hooks import run_beside as run_beside
from nc_finetune.backbones.feature_hooks import watch_input as watch_input
from nc_finetune.backbones.feature_hooks import watch_outputs as watch_outputs
from nc_finetune.backbones.layer_inputs import SplitError as SplitError
from nc_finetune.backbones.narrowing import narrow_features as narrow_features
from nc_finetune.backbones.network_layers import NetworkLayers as NetworkLayers
from nc_finetune.backbones.network_layers import find_network_layers as find_network_layers
from nc_finetune.backbones.open_clip_backbone import OpenClipBackbone as OpenClipBackbone
from nc_finetune.backbones.pooling import Pooling as Pooling
from nc_finetune.backbones.pooling import pool_features as pool_features
from nc_finetune.backbones.preprocessing import Preprocessing as Preprocessing
from nc_finetune.backbones.split import PrefixOutput as PrefixOutput
from nc_finetune.backbones.split import SplitBackbone as SplitBackbone
from nc_finetune.backbones.text_encoder import TextEncoder as TextEncoder
from nc_finetune.backbones.text_encoder import imagenet_templates as imagenet_templates
from nc_finetune.backbones.timm_backbone import TimmBackbone as TimmBackbone
from nc_finetune.backbones.weights import state_hash as state_hash
from nc_finetune.backbones.weights import weights_hash as weights_hash
