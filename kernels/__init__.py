"""Kernels: schedule templates and micro-kernels, one family a file. Knows TVM, knows no Graph."""
