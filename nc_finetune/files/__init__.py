"""What is saved of a model, and how it is read again without running anybody's code."""

from nc_finetune.files.delta import Delta as Delta
from nc_finetune.files.delta import apply_delta as apply_delta
from nc_finetune.files.delta import read_delta as read_delta
from nc_finetune.files.delta import save_delta as save_delta
from nc_finetune.files.delta_io import DeltaIO as DeltaIO
from nc_finetune.files.model_config import ModelConfig as ModelConfig
