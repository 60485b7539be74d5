"""`python -m zonoplug`."""

import sys

from zonoplug.cli import main

sys.exit(main())
