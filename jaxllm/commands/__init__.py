"""Commands of the `jaxllm` command line: their options and implementations.

Commands combine training and interop. Each imports what it needs when it runs, so that `--help`
answers at once.
"""
