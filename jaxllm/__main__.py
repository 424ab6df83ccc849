"""`python -m jaxllm` is the command `jaxllm`."""

import sys

from jaxllm.cli import main

sys.exit(main())
