"""Some layers on a GPU: wgpu and WGSL, one source for NVIDIA, AMD, Intel and Apple.

adapters.py finds the GPU, device.py talks to it, shaders/ runs on it, layers.py runs the layers.
"""
