"""`python -m jaxllm` is the command `jaxllm`."""

import sys

from .cli import main

sys.exit(main())
