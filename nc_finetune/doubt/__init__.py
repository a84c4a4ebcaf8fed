"""What a model does not know: a state of its classes that tells probabilities, sets and strangers."""

from nc_finetune.doubt.state import Doubts as Doubts
from nc_finetune.doubt.state import DoubtState as DoubtState
from nc_finetune.doubt.taking import take_state as take_state
