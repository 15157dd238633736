"""Graph → kernels: partition into stages, lower groups to TIR, build and cache object files."""
