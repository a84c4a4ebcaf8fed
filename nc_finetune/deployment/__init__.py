"""What is done with a saved model: load it, export it, predict with it, share it."""

from nc_finetune.deployment.export import export_onnx as export_onnx
from nc_finetune.deployment.export import export_program as export_program
from nc_finetune.deployment.export import export_state_dict as export_state_dict
from nc_finetune.deployment.load import build_model as build_model
from nc_finetune.deployment.load import load_delta as load_delta
from nc_finetune.deployment.load import load_model as load_model
from nc_finetune.deployment.model_card import model_card as model_card
from nc_finetune.deployment.model_facts import Accuracy as Accuracy
from nc_finetune.deployment.model_facts import ModelFacts as ModelFacts
from nc_finetune.deployment.predict import Predicted as Predicted
from nc_finetune.deployment.predict import predict_folder as predict_folder
from nc_finetune.deployment.predict import predict_images as predict_images
from nc_finetune.deployment.push import check_push as check_push
from nc_finetune.deployment.push import push_model as push_model
