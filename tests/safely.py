"""How tests tell a trainer to read checkpoints without unpickling: Lightning has the argument from 2.6 on."""

import inspect
from typing import Any

import lightning as L

SAFELY: dict[str, Any] = {"weights_only": True} if "weights_only" in inspect.signature(L.Trainer.fit).parameters else {}
