"""The command ``nc-finetune``."""

from nc_finetune.cli.app import main as main
