"""Language models as pytrees of parameters."""
