"""Fine-tune a pre-trained image backbone by changing as little of it as possible, guided by neural collapse."""

from importlib.metadata import version

from nc_finetune.backbones import Backbone as Backbone
from nc_finetune.backbones import OpenClipBackbone as OpenClipBackbone
from nc_finetune.backbones import TimmBackbone as TimmBackbone
from nc_finetune.backbones import create_backbone as create_backbone
from nc_finetune.callbacks import DeltaCheckpoint as DeltaCheckpoint
from nc_finetune.callbacks import LayerwiseNC1 as LayerwiseNC1
from nc_finetune.classifier import DivergedError as DivergedError
from nc_finetune.classifier import ImageClassifier as ImageClassifier
from nc_finetune.data import ImageData as ImageData
from nc_finetune.delta import load_delta as load_delta
from nc_finetune.delta import save_delta as save_delta
from nc_finetune.metrics import NeuralCollapse as NeuralCollapse

__version__ = version("nc-finetune")
