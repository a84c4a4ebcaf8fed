"""Fine-tuning methods: what is trained of a backbone, and which features reach the classifier."""

from nc_finetune.methods.base import FinetuningMethod as FinetuningMethod
from nc_finetune.methods.full import FullFinetuning as FullFinetuning
from nc_finetune.methods.layer import LayerFinetuning as LayerFinetuning
from nc_finetune.methods.linear_probe import LinearProbe as LinearProbe
from nc_finetune.methods.skip_connection import SkipConnectionFinetuning as SkipConnectionFinetuning

METHOD_NAMES = ("LinearProbe", "LayerFinetuning", "SkipConnectionFinetuning", "FullFinetuning")
