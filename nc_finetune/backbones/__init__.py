"""Pre-trained networks behind one interface; the only place that knows timm."""

from nc_finetune.backbones.base import PENULTIMATE as PENULTIMATE
from nc_finetune.backbones.base import STEM as STEM
from nc_finetune.backbones.base import Backbone as Backbone
from nc_finetune.backbones.base import Preprocessing as Preprocessing
from nc_finetune.backbones.feature_hooks import watch_input as watch_input
from nc_finetune.backbones.feature_hooks import watch_outputs as watch_outputs
from nc_finetune.backbones.pooling import pool_features as pool_features
from nc_finetune.backbones.timm_backbone import TimmBackbone as TimmBackbone
from nc_finetune.backbones.weights import state_hash as state_hash
from nc_finetune.backbones.weights import weights_hash as weights_hash
