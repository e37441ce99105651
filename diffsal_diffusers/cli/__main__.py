"""`python -m diffsal_diffusers.cli`."""

import sys

from . import main

sys.exit(main())
