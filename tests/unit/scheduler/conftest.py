"""The scheduler's tests have their own folder of helpers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
