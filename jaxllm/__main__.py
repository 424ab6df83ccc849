"""Entry point of `python -m jaxllm`, the same as the command `jaxllm`."""

import sys

from .cli import main

sys.exit(main())
