"""Hugging Face directories in and out: config.json, *.safetensors, and which of their tensors is which parameter."""

from t5x_selfimprove.models.hugging_face.exporting import copy_tokenizer, family_of, write_model
from t5x_selfimprove.models.hugging_face.importing import of_directory, read_model, read_source
from t5x_selfimprove.models.hugging_face.peft import write_adapters

__all__ = ['copy_tokenizer', 'family_of', 'of_directory', 'read_model', 'read_source', 'write_adapters', 'write_model']
