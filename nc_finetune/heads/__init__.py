"""Heads: classifiers on the feature of a backbone. The plain linear one is ``torch.nn.Linear``."""

from nc_finetune._common.class_names import class_names
from nc_finetune.heads.base import ClassifierHead as ClassifierHead
from nc_finetune.heads.base import logit_scale_for as logit_scale_for
from nc_finetune.heads.base import set_width_ as set_width_
from nc_finetune.heads.base import unit_length as unit_length
from nc_finetune.heads.bottleneck import BottleneckHead as BottleneckHead
from nc_finetune.heads.cosine import CosineHead as CosineHead
from nc_finetune.heads.discriminant import DiscriminantHead as DiscriminantHead
from nc_finetune.heads.frames import FrameHead as FrameHead
from nc_finetune.heads.frames import OrthogonalFrameHead as OrthogonalFrameHead
from nc_finetune.heads.frames import SimplexETFHead as SimplexETFHead
from nc_finetune.heads.mean import MeanHead as MeanHead
from nc_finetune.heads.prompts import PROMPT_TEMPLATES as PROMPT_TEMPLATES
from nc_finetune.heads.prompts import prompt_embeddings as prompt_embeddings
from nc_finetune.heads.prompts import prompt_templates as prompt_templates
from nc_finetune.heads.zero_shot import ZeroShotHead as ZeroShotHead

HEAD_NAMES = class_names(globals(), ClassifierHead)
