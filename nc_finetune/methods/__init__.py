"""Fine-tuning methods: what is trained of a backbone, and which features reach the classifier."""

from nc_finetune._common.class_names import class_names
from nc_finetune.methods._optimizer_groups import parameter_groups as parameter_groups
from nc_finetune.methods._schedule import ScheduleName as ScheduleName
from nc_finetune.methods._schedule import check_schedule as check_schedule
from nc_finetune.methods._schedule import follow as follow
from nc_finetune.methods._schedule import rate_factor as rate_factor
from nc_finetune.methods._skips import SkipConnections as SkipConnections
from nc_finetune.methods.adapters import AdapterTuning as AdapterTuning
from nc_finetune.methods.base import AUTO as AUTO
from nc_finetune.methods.base import FinetuningMethod as FinetuningMethod
from nc_finetune.methods.controls import Control as Control
from nc_finetune.methods.controls import NeighborsHead as NeighborsHead
from nc_finetune.methods.full import FullFinetuning as FullFinetuning
from nc_finetune.methods.layer import LayerFinetuning as LayerFinetuning
from nc_finetune.methods.layer import named_blocks as named_blocks
from nc_finetune.methods.linear_probe import LinearProbe as LinearProbe
from nc_finetune.methods.linear_probe import SkipProbe as SkipProbe
from nc_finetune.methods.probe_first import ProbeFirst as ProbeFirst
from nc_finetune.methods.readout import LayerReadout as LayerReadout
from nc_finetune.methods.side import SideFinetuning as SideFinetuning
from nc_finetune.methods.skip_connection import SkipConnectionFinetuning as SkipConnectionFinetuning
from nc_finetune.methods.vectors import BiasTuning as BiasTuning
from nc_finetune.methods.vectors import NormTuning as NormTuning
from nc_finetune.methods.zero_shot import ZeroShot as ZeroShot

METHOD_NAMES = class_names(globals(), FinetuningMethod)
