"""The commands of `jaxllm`: the options of each, and what it does.

They join training and interop. Each imports what it needs when it runs, so that `--help` answers at
once.
"""
