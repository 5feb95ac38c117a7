"""`python -m mindglm`: the same as the command `mindglm`."""

import sys

from mindglm.cli.main import main

sys.exit(main())
