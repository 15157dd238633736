"""The network: Open Inference Protocol v2 over one transport-free data plane."""
