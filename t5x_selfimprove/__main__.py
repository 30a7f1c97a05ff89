"""python -m t5x_selfimprove."""

import sys

from t5x_selfimprove.main import main

sys.exit(main())
