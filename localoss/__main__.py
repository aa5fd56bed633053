"""`python -m localoss` is the same as `localoss`."""

import sys

from localoss.cli import main

sys.exit(main())
